"""Back up a folder while it is in use, check a backup, and restore it into a new folder.

``folder_backup`` does it, ``archive`` is the file. Not here: what each side takes with it, and what
it does after a restoration.
"""
