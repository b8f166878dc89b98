"""The clinic's segmentation as a service: gRPC, Open Inference Protocol v2 (KServe).

The only door to grpc, tritonclient and prometheus_client. A request holds voxels and where they
lie, and no name of a patient; what is not in the request is not known to the service, and nothing
of a request is written to a disk or a log.
"""
