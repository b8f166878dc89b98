"""The review page: look at a mask in the browser, correct it, accept or reject it.

    cli       the command
    serving   its process: one result, one page, this machine alone (``common.web``)
    pages     what a browser may ask
    into_cohort  what a site does with a case that was reviewed
    desk      what the page may ask of a review: show, keep a draft, decide
    decision  a decision, and the version that it becomes
    drafts    what was drawn and not decided yet
    subject   what is under review: result, images, the mask that is gone on from
    versions  reviews on the disk: numbered, whole, never written over, in a hash-chained log
    images    the images that were segmented, found again and checked
    mask      what a browser sends as a mask, checked

``static`` holds the page's own scripts and NiiVue, the viewer, as its makers publish it.
"""
