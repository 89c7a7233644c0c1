"""Publishing: versions of a model for servers, as a folder of files that publisher and replicas share."""
