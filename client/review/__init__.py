"""What a review of a segmentation is built from. There is no page and no command yet.

    gate      who may ask a page on this machine: one link, one cookie, one host
    versions  reviews on the disk: numbered, whole, never written over, in a hash-chained log
    images    the images that were segmented, found again and checked
    mask      what a browser sends as a mask, checked

``static`` holds NiiVue, the viewer, as its makers publish it.
"""
