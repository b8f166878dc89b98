"""The clinic's segmentation as a service: gRPC, Open Inference Protocol v2 (KServe).

Nothing else imports grpc or tritonclient. A request holds voxels and where they lie, and no name
of a patient; what is not in the request is not known to the service, and nothing of a request is
written to a disk or a log. ``request_queue`` says who is next, ``model_holder`` keeps the active
model on the device, ``remote_segmentation`` is the client.
"""
