"""Keys and signed statements: who signed, who speaks for the consortium, who may enrol.

``public_keys`` reads keys that somebody sent, ``identity`` signs and checks,
``coordinator_charter`` says who the coordinators are and how many of them must sign, ``enrolment``
is a hospital's request and the kit that it gets, ``revocation`` the list of released models that
must not be used. Not here: TLS certificates (``server.consortium``) and keys on a site's disk
(``client.site.keys``).
"""
