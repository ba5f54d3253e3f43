"""S3 servers besides MinIO, each as it comes from its registry: what tests run the program on."""
