"""Which runner gets a request: the one that has computed its beginning before, as long as it has room."""

import hashlib
import json

BLOCK = 64  # characters, about the 16 tokens of a KV block
BLOCKS = 4


def prefix(path, body):
    """What decides where a request goes: the first blocks of its prompt. Empty where it has none to share."""
    try:
        request = json.loads(body)
    except ValueError:
        return ''
    if not isinstance(request, dict):
        return ''
    # Chats begin alike where their system prompts do; the tools come before the messages in most templates.
    parts = [request.get(name) for name in ('tools', 'messages', 'prompt', 'input') if request.get(name)]
    text = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else json.dumps(parts)
    return path + text[:BLOCK * BLOCKS] if parts else ''


def order(prefix, runners):
    """The runners in the order in which a request with this prefix should try them.

    By rendezvous hashing: each runner draws a number from the prefix, and the largest one wins. A runner that comes or goes
    moves its own share of the prefixes, and no others.
    """
    def draw(runner):
        return hashlib.blake2b(f'{prefix}\0{runner}'.encode(), digest_size=8).digest()
    return sorted(runners, key=draw, reverse=True)
