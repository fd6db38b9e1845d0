"""The messages on a worker's sockets: one tuple each, the kind first.

Role: names for the first element of every tuple. Owner: none; both ends read this file.

A frame carries a list of these tuples (see `frames.py`). `payload` is what `codec.pack` made:
bytes, or a `(bytes | None, first, count)` reference to buffers of the same frame.

To the worker, on the data socket
    (BOOT, config)                                    first frame, once
    (FUNCTION, function_id, payload)                  before the first task that needs it
    (FORGET, function_id)
    (TASK, span_id, function_id, payload)             payload: (args, kwargs)
    (CHUNK, span_id, function_id, first, star, stretch_ns, whole, payload)
                                                      stretch_ns: report after about that time; 0: each
                                                      whole: payload is a list of items, or a range
                                                      else: payload is a list of payloads
    (STOP,)                                           after this the worker touches no channel

To the worker, on the control socket (read by its watcher thread)
    one byte RECALL                                   send finished results, hand back what is unstarted
    one byte FLUSH                                    send finished results
    one byte TRIM                                     give memory that is only kept warm back to the system

From the worker, on the data socket
    (READY, pid)                                      booted, initializer done
    (BOOT_FAILED, stage, payload)                     stage: "main", "initializer" or
                                                      "unknown" (it cannot be loaded); payload: an error
    (DONE, span_id, payload, elapsed_ns)              one task finished
    (PART, span_id, first, count, whole, payload, elapsed_ns)
                                                      elapsed_ns: 0 if it cannot be told yet
    (FAILED, span_id, index, payload, elapsed_ns)     that one failed; payload: an error
    (UNKNOWN, span_id, index, payload, function_id)   its function cannot be loaded here; payload: an error
    (HANDBACK, span_id, first)                        from `first` on nothing was started

To a `shoal.Process`: BOOT as above; from it
    (READY, pid)                                      booted: the object is there
    (UNKNOWN, payload)                                it cannot be found by name; answered by (BOOT, payload or None), by value
    (SAID_READY, payload)                             the object called `ready`
    (RETURNED, payload, code)                         `run` returned; code: what the process will exit with
    (RAISED, payload, code)                           `run`, or the start, raised; payload: an error
To it, on the control socket
    one byte ASK                                      stop, please
    one byte TRIM
Kinds from OTHERS up to LENT are for what stands on a link: whoever owns that gets them as they are.

Both ways, in front of all others of a frame; `courier.py` makes and takes them
    (LENT, count, first, entries)                     count descriptors were passed beside this frame, numbered from first
        entry (slot, place, lease, offset, nbytes)    buffer `slot` lies in descriptor `place`, lent
        entry (slot, place, id, back, nbytes)         buffer `slot` is a shared segment; place -1: known already;
                                                      back 1: it came from you, do not keep it for me
    (NEWS, leases, ids, missed)                       leases given up (below zero: a fork may still see it); shared
                                                      segments let go of; shared segments that did not arrive
"""

from __future__ import annotations

from typing import Any, Final

BOOT: Final = 1
FUNCTION: Final = 2
FORGET: Final = 3
TASK: Final = 4
CHUNK: Final = 5
STOP: Final = 6

READY: Final = 20
BOOT_FAILED: Final = 21
DONE: Final = 22
PART: Final = 23
FAILED: Final = 24
UNKNOWN: Final = 25
HANDBACK: Final = 26

SAID_READY: Final = 30
RETURNED: Final = 31
RAISED: Final = 32
OTHERS: Final = 33

LENT: Final = 40
NEWS: Final = 41

#: The bytes of the control socket.
RECALL: Final = b"r"
FLUSH: Final = b"f"
TRIM: Final = b"t"
ASK: Final = b"s"

Message = tuple[Any, ...]
