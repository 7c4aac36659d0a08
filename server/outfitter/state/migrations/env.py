"""Run by alembic: migrations on the connection that `upgrade` opened, in its transaction."""

from alembic import context

from outfitter.state.migrations import REVISION_TABLE
from outfitter.state.models import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    version_table=REVISION_TABLE,
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
