"""The program: the audit as a Prefect flow, and the command line."""
