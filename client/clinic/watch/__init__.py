"""Unattended work: each complete new study of a folder or an Orthanc is segmented once.

What is done is decided by the disk alone: a result's folder appears whole, by one rename, so that
a killed process leaves either a result or nothing. Studies that are refused, or that ended the
process again and again, are recorded with the reason and left alone until their files change.
"""
