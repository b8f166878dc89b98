"""Is this cohort fit to train on: what is measured of each case, what is remarkable, and a page.

    case.py        one case, from its files to measures and picture
    measures.py    numbers about one case, from its files and from what the network would see
    remarks.py     what a person should look at, one case and against the cohort
    thumbnails.py  small pictures with the mask's outline
    page.py        one HTML file to look through

Nothing of it leaves the hospital: the page shows patients.
"""
