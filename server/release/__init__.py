"""Released models: a signed folder for the clinics, and the signed list of those that are revoked.

Not here: how a site verifies and installs one (``client.clinic.released_model``,
``client.study.model_installation``).
"""
