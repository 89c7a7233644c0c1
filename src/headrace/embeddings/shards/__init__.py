"""Parts of tables in other processes: the service, its clients, and the protocol between them."""
