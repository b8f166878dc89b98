"""The review page: look at a mask in the browser, correct it, accept or reject it.

::

    page_process    its process: one result, one page, this machine alone (``common.web``)
    pages           what a browser may ask
    session         what the page may ask of a review: show, keep a draft, decide
    decision        a decision, and the version that it becomes
    into_cohort     what a site does with a case that was reviewed
    review_case     what is under review: result, images, the mask to begin with
    source_images   the images that were segmented, found again and checked
    submitted_mask  what a browser sends as a mask, checked
    drafts          what was drawn and not decided yet
    versions        reviews on the disk: numbered, whole, never written over, in a hash-chained log

``static`` holds the page's own scripts and NiiVue, the viewer, as its makers publish it. Not here:
the site's page for hospital IT (``client.page``), and reviewed cases on the disk
(``client.cohort.reviewed_cases``).
"""
