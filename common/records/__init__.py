"""What is on the disk: files written whole or not at all, formats, the journal, arrays of weights.

Not here: what a record means. The privacy ledger is the hospital's (``client.privacy``).
"""
