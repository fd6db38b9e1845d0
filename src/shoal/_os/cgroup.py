"""Where this process sits among the control groups, and what they say of its memory.

Role: read /proc and the cgroup file systems, versions 1 and 2, also side by side. Owner: nobody; nothing is written.
Every reader takes `root`, a directory that stands for ``/``, so tests use real files in trees of their own.

Invariants
    G1  A limit is the smallest on the way from our group up to what we can see of the hierarchy: any ancestor binds.
    G2  What cannot be read does not limit.
"""

from __future__ import annotations

#: Version 1 writes "no limit" as the largest multiple of the page size; anything this large is that.
_NO_LIMIT_BYTES = 1 << 62


def read_text(path: str) -> str | None:
    """Return the file's text, or `None` if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return None


def own_groups(cgroup_text: str) -> dict[str, str]:
    """Return {controller: group} from the text of /proc/self/cgroup; version 2 has the key ``""``."""
    groups = {}
    for line in cgroup_text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            groups[""] = group
        else:
            groups.update(dict.fromkeys(controllers.split(","), group))
    return groups


def mounts(mountinfo_text: str) -> dict[str, tuple[str, str]]:
    """Return {controller: (mounted group, mount point)} from the text of /proc/self/mountinfo; version 2 is ``""``."""
    found: dict[str, tuple[str, str]] = {}
    for line in mountinfo_text.splitlines():
        front, separator, back = line.partition(" - ")
        fields, tail = front.split(" "), back.split(" ")
        if not separator or len(fields) < 5 or len(tail) < 3:
            continue
        place = (_unescape(fields[3]), _unescape(fields[4]))
        if tail[0] == "cgroup2":
            found.setdefault("", place)
        elif tail[0] == "cgroup":
            for option in tail[2].split(","):
                found.setdefault(option, place)
    return found


def _unescape(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def directories(group: str, mounted_group: str, mount_point: str) -> list[str]:
    """Return the directories of `group` and its ancestors, own first, up to and with the mount point.

    In a container the mount may show only a part of the hierarchy (`mounted_group`), and the group may lie
    outside it (``/../x``): then the mount point is all we can see.
    """
    mounted = mounted_group.rstrip("/")
    inside = group[len(mounted) :] if group == mounted or group.startswith(mounted + "/") else ""
    parts = [part for part in inside.split("/") if part]
    if ".." in parts:
        parts = []
    return ["/".join([mount_point.rstrip("/"), *parts[:depth]]) for depth in range(len(parts), -1, -1)]


def group_directories(controller: str, root: str = "/") -> list[str]:
    """Return the directories of our group and its ancestors for `controller` (``""``: version 2); empty if none."""
    base = root.rstrip("/")
    group = own_groups(read_text(f"{base}/proc/self/cgroup") or "").get(controller)
    place = mounts(read_text(f"{base}/proc/self/mountinfo") or "").get(controller)
    if group is None or place is None:
        return []
    return [base + directory for directory in directories(group, *place)]


# --- memory -------------------------------------------------------------------------------------


def parse_limit(text: str | None) -> int | None:
    """Return a limit in bytes from the text of memory.max or memory.limit_in_bytes; `None` for no limit."""
    word = (text or "").strip()
    if not word.isdigit():
        return None  # "max", or unreadable
    limit = int(word)
    return limit if limit < _NO_LIMIT_BYTES else None


def parse_count(text: str | None, key: str) -> int | None:
    """Return the number after `key` in a text of ``key number`` lines (also ``key: number kB``), or `None`."""
    for line in (text or "").splitlines():
        words = line.split()
        if len(words) >= 2 and words[0].rstrip(":") == key and words[1].isdigit():
            return int(words[1])
    return None


#: (controller, limit, usage, key of reclaimable cache in memory.stat) for version 2 and 1.
_MEMORY_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def memory_limit_bytes(root: str = "/") -> int | None:
    """Return the smallest memory limit on our group or any ancestor, or `None` if there is none."""
    limits = [
        parse_limit(read_text(f"{directory}/{limit_file}"))
        for controller, limit_file, _, _ in _MEMORY_FILES
        for directory in group_directories(controller, root)
    ]
    return min((limit for limit in limits if limit is not None), default=None)


def oom_kill_count(root: str = "/") -> int | None:
    """Return how many processes of our group the kernel has killed for lack of memory, ever; `None` if it keeps no count.

    Counts every such kill of a member, whichever limit caused it (ours, an ancestor's, the machine's). Version 2
    counts descendants of the group too and keeps no count for the root group.
    """
    for controller, file in (("", "memory.events"), ("memory", "memory.oom_control")):
        own = group_directories(controller, root)[:1]
        count = parse_count(read_text(f"{own[0]}/{file}"), "oom_kill") if own else None
        if count is not None:
            return count
    return None


def total_memory_bytes(root: str = "/") -> int:
    """Return the machine's memory, limits of groups left aside; 0 if it cannot be read."""
    return (parse_count(read_text(f"{root.rstrip('/')}/proc/meminfo"), "MemTotal") or 0) * 1024


def usable_memory_bytes(root: str = "/") -> int:
    """Return how much memory this process may use at most: the machine's, or our group's limit if that is less."""
    limit, total = memory_limit_bytes(root), total_memory_bytes(root)
    return total if limit is None else min(total, limit)


def available_memory_bytes(root: str = "/") -> int:
    """Return how much can be used before something must give way: the machine's share or a group's, the smaller.

    File cache that can be dropped counts as available. 0 if it cannot be read.
    """
    available = (parse_count(read_text(f"{root.rstrip('/')}/proc/meminfo"), "MemAvailable") or 0) * 1024
    for controller, limit_file, usage_file, cache_key in _MEMORY_FILES:
        for directory in group_directories(controller, root):
            limit = parse_limit(read_text(f"{directory}/{limit_file}"))
            usage = parse_limit(read_text(f"{directory}/{usage_file}"))
            if limit is None or usage is None:
                continue
            cache = parse_count(read_text(f"{directory}/memory.stat"), cache_key) or 0
            available = min(available, max(0, limit - max(0, usage - cache)))
    return available
