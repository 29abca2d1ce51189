"""What scripts/prepare_data.py is made of: sources of token ids, and the writer of token shards.

The format of the shards is data/FORMAT.md.
"""
