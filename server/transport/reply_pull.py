"""One reply as it comes from the SuperLink: object by object, within the limit of its order.

Flower keeps a message as a tree of objects, each named by its digest, and pulls all of them before
it looks at any. Who sends a reply chooses the tree: it may be huge, name objects that are not
there, or say a million times that the same chunk follows. So a reply is pulled from its root down,
along the one form that gliofed's messages have::

    Message - RecordDict - ConfigRecord ("gliofed")
                         - ArrayRecord ("arrays") - Array ("safetensors") - chunks

and each object is compared with ``common.messages.reply_limits`` as it comes, the chunks with how
often they are said to follow before any is joined. What is of another form is refused where it is
first seen, and freed at the SuperLink without being pulled.

An object that has not arrived yet is no fault: ``proceed`` returns None and goes on from there when
it is called again, so that no thread waits for a slow upload.

Invariants: memory holds at most the limit of the order twice, and the one object that passed it;
recursion never follows what came. Out of scope: calls (``server.transport.flower_fleet``), what the
message says (``common.messages.wire_format``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from common.errors import UpdateError
from common.messages.reply_limits import REPORT_BYTES, ReplyLimit
from server.rounds.fleet import Delivery

_NAME: Final = re.compile(r"[0-9a-f]{64}")
_REPORT: Final = "gliofed"
_ARRAYS: Final = "arrays"
_BODY: Final = "safetensors"

Fetch = Callable[[str], bytes | None]
"""Returns the content of an object, or None if it is still to come; raises UpdateError if it never
will."""


class Tree(Protocol):
    """Flower's ``ObjectTree``: the name of an object, and the trees below it."""

    object_id: str
    children: Any


class NotYetError(Exception):
    """An object of the reply is still on its way."""


class _Object(NamedTuple):
    children: list[str]
    body: memoryview
    whole: bytes


class Incoming:
    """A reply whose root is known, and what of it was pulled."""

    def __init__(self, root: str, tree: Tree, limit: ReplyLimit) -> None:
        """Raise UpdateError (code ``reply-objects``) for a tree of more objects than are due."""
        self.root = root
        self._limit = limit
        self._names = _names(tree, limit.objects)
        self._held: dict[str, bytes] = {}
        self._bytes = 0

    @property
    def held_bytes(self) -> int:
        """How many bytes of it are in memory."""
        return sum(map(len, self._held.values()))

    def proceed(self, fetch: Fetch) -> Delivery | None:
        """Return the reply if all of it is there now, else None; raise UpdateError to refuse it.

        Codes: ``reply-objects``, ``reply-size`` for what is beyond the limit, ``reply-form`` for
        another form.
        """
        try:
            return self._message(fetch)
        except NotYetError:
            return None

    def _message(self, fetch: Fetch) -> Delivery:
        root = self._object(fetch, self.root, Message, most=self._limit.form_bytes)
        if not root.children:
            failed = Message.inflate(root.whole, {})
            return Delivery(None, f"flower-{int(failed.error.code)}")
        record = self._object(fetch, _only(root.children), RecordDict, most=self._limit.form_bytes)
        parts = _named(record)
        if set(parts) - {_REPORT, _ARRAYS} or _REPORT not in parts:
            raise _form("it holds other records than a report and its arrays")
        said = self._object(fetch, parts[_REPORT], ConfigRecord, most=REPORT_BYTES)
        content = RecordDict({_REPORT: ConfigRecord.inflate(said.whole, {})})
        if _ARRAYS in parts:
            content[_ARRAYS] = self._arrays(fetch, parts[_ARRAYS])
        self._held.clear()
        return Delivery(content, "")

    def _arrays(self, fetch: Fetch, name: str) -> ArrayRecord:
        arrays = self._object(fetch, name, ArrayRecord, most=self._limit.form_bytes)
        named = _named(arrays)
        if set(named) != {_BODY}:
            raise _form("its arrays are not one body")
        array = self._object(fetch, named[_BODY], Array, most=self._limit.form_bytes)
        about = _json(array.body)
        order = about.get("arraychunk_ids") if isinstance(about, dict) else None
        if not isinstance(order, list) or len(order) > self._limit.objects:
            raise _objects(self._limit)
        chunks: list[memoryview] = []
        total = 0
        for place in order:
            if not isinstance(place, int) or not 0 <= place < len(array.children):
                raise _form("a chunk of its arrays is not there")
            name = array.children[place]
            most = self._limit.body_bytes + self._limit.form_bytes
            chunk = self._object(fetch, name, "ArrayChunk", most=most)
            total += len(chunk.body)
            if total > self._limit.body_bytes:
                raise _size(self._limit)
            chunks.append(chunk.body)
        data = b"".join(chunks)
        return ArrayRecord({_BODY: Array("uint8", (len(data),), _BODY, data)})

    def _object(self, fetch: Fetch, name: str, kind: type | str, *, most: int) -> _Object:
        """Return an object that was pulled, now or before, of the class ``kind``."""
        if name not in self._names:
            raise _form("it names an object that its tree lacks")
        content = self._held.get(name)
        if content is None:
            content = fetch(name)
            if content is None:
                raise NotYetError
            self._bytes += len(content)
            if len(content) > most or self._bytes > self._limit.bytes:
                raise _size(self._limit)
            self._held[name] = content
        return _opened(content, kind if isinstance(kind, str) else kind.__qualname__)


def _names(tree: Tree, most: int) -> frozenset[str]:
    """Return the names in a tree; it is walked without recursion, and not beyond ``most``."""
    names: set[str] = set()
    left, seen = [tree], 0
    while left:
        one = left.pop()
        seen += 1
        if seen + len(left) + len(one.children) > most:
            raise UpdateError(
                f"The reply consists of more than the {most} objects that its order allows.",
                do=_DO,
                code="reply-objects",
            )
        names.add(str(one.object_id))
        left.extend(one.children)
    return frozenset(names)


def _opened(content: bytes, kind: str) -> _Object:
    """Return the parts of an object; raise UpdateError unless it is of the class ``kind``."""
    end = content.find(b"\0")
    body = memoryview(content)[end + 1 :]
    values = content[: max(0, end)].decode("ascii", "replace").split(" ")
    if len(values) != 3 or values[2] != str(len(body)):
        raise _form("an object has no head that Flower writes")
    if values[0] != kind:
        raise _form(f"where a {kind} is due there is something else")
    children = values[1].split(",") if values[1] else []
    if not all(map(_NAME.fullmatch, children)) or len(set(children)) != len(children):
        raise _form("an object names others by what is no name")
    return _Object(children, body, content)


def _named(record: _Object) -> dict[str, str]:
    """Return which object stands under which name in a record."""
    value = _json(record.body)
    if not isinstance(value, dict) or set(map(str, value.values())) != set(record.children):
        raise _form("a record names other objects than those below it")
    return {str(name): str(one) for name, one in value.items()}


def _json(body: memoryview) -> Any:
    try:
        return json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise _form("an object is not JSON where Flower writes it") from None


def _only(children: list[str]) -> str:
    if len(children) != 1:
        raise _form("a message has one content")
    return children[0]


_DO: Final = "Compare the versions of gliofed at the site and at the coordinator."


def _form(what: str) -> UpdateError:
    return UpdateError(
        f"The reply has not the form of a message of gliofed: {what}.", do=_DO, code="reply-form"
    )


def _size(limit: ReplyLimit) -> UpdateError:
    return UpdateError(
        f"The reply is larger than the {limit.bytes} bytes that its order allows.",
        do=_DO,
        code="reply-size",
    )


def _objects(limit: ReplyLimit) -> UpdateError:
    return UpdateError(
        f"The reply says that its arrays are more than the {limit.objects} chunks that its order "
        "allows.",
        do=_DO,
        code="reply-objects",
    )
