"""What schemathesis does not know by itself: a component is bytes as they are."""

import schemathesis


@schemathesis.serializer("application/wasm")
def component(_context, value):
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.deserializer("application/wasm")
def downloaded(_context, response):
    # As the document describes it: an array of bytes.
    return list(response.content)
