"""Is this cohort fit to train on: what is measured of each case, what is remarkable, and a page.

::

    case_check         one case, from its files to measurements and picture
    case_measurements  numbers about one case, from its files and from what the network would see
    cohort_warnings    what a person should look at, one case and against the cohort
    thumbnails         small pictures with the mask's outline
    quality_report     one HTML file to look through

Nothing of it leaves the hospital: the page shows patients.
"""
