"""Parts of the serving benchmark: the model and its requests, load, and servers of other libraries."""
