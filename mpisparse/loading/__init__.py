"""What `shard` is made of: plans of epochs, orders that users' samplers draw, and streams."""

from mpisparse.loading.epochs import Epochs
from mpisparse.loading.sharded import ShardedLoader
from mpisparse.loading.stream import Stream, StreamLoader

__all__ = ["Epochs", "ShardedLoader", "Stream", "StreamLoader"]
