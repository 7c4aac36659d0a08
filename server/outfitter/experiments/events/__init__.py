"""Events of experiments on their way to the database: none is lost with a process."""
