"""The catalog: names, versions, tags, saved loadouts, in a SQL database."""
