#!/usr/bin/env python3
"""Decodes a recording from what docs/recording-format.md says, and nothing else.

    decode.py F.slat [N]    the number of accesses and events and a checksum over what all of them say, or the first N

It shares no code with the library: it shows that the document is enough for another reader. It needs the
`zstd` command.
"""
import struct, subprocess, sys, zlib
from collections import Counter

M64 = (1 << 64) - 1


def zstd(data, length):
    raw = subprocess.run(["zstd", "-dcq"], input=data, stdout=subprocess.PIPE, check=True).stdout
    assert len(raw) == length, "length of a section"
    return raw


class Bytes:
    def __init__(self, data):
        self.data, self.at = data, 0

    def left(self):
        return len(self.data) - self.at

    def take(self, n):
        assert n <= self.left(), "a stream ends early"
        self.at += n
        return self.data[self.at - n : self.at]

    def byte(self):
        return self.take(1)[0]

    def u64(self):
        return int.from_bytes(self.take(8), "little")

    def varint(self):
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                assert value <= M64
                return value

    def difference(self, base):
        v = self.varint()
        return (base + ((v >> 1) ^ -(v & 1))) & M64


def header(f):
    assert f[:8] == b"SLATREC\0"
    major, minor, length = struct.unpack_from("<HHI", f, 8)
    assert major == 1
    assert struct.unpack_from("<I", f, 16 + length)[0] == zlib.crc32(f[: 16 + length])
    b = Bytes(f[16 : 16 + length])
    arch, vcpus, start, end = b.byte(), b.byte(), b.varint(), b.varint()
    text = lambda: b.take(b.varint()).decode()
    pairs = [(text(), text()) for _ in range(b.varint())]
    return arch, vcpus, (start, end), pairs, 16 + length + 4


def index(f):
    assert f[-8:] == b"SLATEND\0"
    crc, offset, endcrc = struct.unpack_from("<IQI", f, len(f) - 24)
    assert zlib.crc32(f[-20:-12] + f[-8:]) == endcrc
    assert f[offset : offset + 4] == b"SIDX"
    assert zlib.crc32(f[offset:-24]) == crc
    count = struct.unpack_from("<I", f, offset + 4)[0]
    return [struct.unpack_from("<4Q", f, offset + 8 + 32 * i) for i in range(count)], offset


def block(f, at):
    magic, flags, sections, before, accesses, instructions, stored, crc = struct.unpack_from("<4sHHQQQII", f, at)
    assert magic == b"SBLK"
    table = f[at + 40 : at + 40 + 16 * sections]
    assert crc == zlib.crc32(f[at : at + 36] + table)
    at += 40 + 16 * sections
    out = {}
    for i in range(sections):
        kind, vcpu, raw, size, sum_ = struct.unpack_from("<BBxxIII", table, 16 * i)
        data = f[at : at + size]
        assert zlib.crc32(data) == sum_
        out[kind, vcpu] = zstd(data, raw)
        at += size
    return flags, before, accesses, instructions, out, at


class Vcpu:
    """The model and the streams of one vCPU in one block of the file."""

    def __init__(self, sections, vcpu):
        get = lambda kind: Bytes(sections.get((kind, vcpu), b""))
        self.codes, self.successors, self.shapes, self.lengths = get(3), get(4), get(5), get(6)
        self.differences, self.pages, self.frames = get(7), get(8), get(9)
        self.table = [0] * (1 << 15)
        self.followed = {}
        self.current = self.before = 0
        self.sites = {}  # block -> list of [last, stride]
        self.shape = {}  # block -> list of shape bytes
        self.moved = 0
        self.page_entries, self.last_page = {}, 0
        self.frame_entries, self.last_frame = {}, (0, 0)

    def slot(self):
        return (((self.current * 0x9E3779B1) ^ (self.before * 0x85EBCA6B)) & 0xFFFFFFFF) >> 17 & 0x7FFF


def decode(path, sink):
    f = open(path, "rb").read()
    arch, vcpus, memory, pairs, at = header(f)
    entries, index_at = index(f)
    definitions = []
    user = [False] * vcpus
    count = Counter()
    first = 0
    for entry in entries:
        assert entry[0] == at and entry[1] == first
        flags, before, accesses, instructions, sections, at = block(f, at)
        assert (before, accesses, instructions) == entry[1:]
        if flags & 1:
            definitions = []
        b, last = Bytes(sections.get((1, 0), b"")), 0
        while b.left():
            length = b.varint()
            insns = gpa = 0
            if length:
                insns = b.varint()
                gpa = last = b.difference(last)
            definitions.append((length, insns, gpa, list(b.take(b.varint()))))
        cpu = [Vcpu(sections, v) for v in range(vcpus)]
        events, state = Bytes(sections.get((2, 0), b"")), dict.fromkeys("page address fault stack entry device".split(), 0)
        state["frame"] = [0] * 6
        if vcpus > 1:
            t = Bytes(sections.get((0, 0), b""))
            turns = []
            while t.left():
                turns.append((t.varint(), t.varint()))
        else:
            turns = [(0, cpu[0].codes.left())]
        made = told = 0
        for v, codes in turns:
            c = cpu[v]
            for _ in range(codes):
                code = c.codes.byte()
                if code & 0x80:
                    for _ in range(code & 0x7F):
                        if vcpus > 1:
                            assert events.byte() == v
                        event(events, state, user, v, count, sink)
                    continue
                n, m = execute(c, code, definitions, user[v], v, count, sink)
                made += n
                told += m
        assert made == accesses and told == instructions, (made, accesses, told, instructions)
        for c in cpu:
            for s in (c.codes, c.successors, c.shapes, c.lengths, c.differences, c.pages, c.frames):
                assert not s.left(), "a stream is not used up"
        assert not events.left()
        first += accesses
    assert at == index_at
    return arch, vcpus, memory, pairs, first, count


def execute(c, code, definitions, user, v, count, sink):
    slot = c.slot()
    number = c.table[slot]
    if code & 1:
        number = c.successors.varint()
        if number == 0:
            number = c.followed.get(c.current, 0)
    c.table[slot] = number
    c.followed[c.current] = number
    c.before, c.current = c.current, number
    length, insns, gpa, shape = definitions[number - 1]
    if number not in c.shape:
        c.shape[number] = list(shape)
        c.sites[number] = [[0, 0] for _ in shape]
    frame = gpa >> 12
    if code & 8:
        c.last_page = c.pages.difference(c.last_page)
        c.page_entries[frame & 0xFFF] = (frame, c.last_page)
    made = 0
    if length:
        va = c.page_entries[frame & 0xFFF][1] << 12 | gpa & 0xFFF
        made += 1
        count["fetches"] += 1
        sink("fetch", va, length, frame, user, v)
    else:
        insns = 0
    sites = c.sites[number]
    n = len(c.shape[number])
    if code & 4:
        s = c.shapes.varint()
        n = s >> 1
        if s & 1:
            c.shape[number] = list(c.shapes.take(n))
            while len(sites) < n:
                sites.append([0, 0])
    out = []
    how = c.lengths.take(n) if code & 2 else bytes(n)
    for i in range(n):
        site, h = sites[i], how[i]
        if h == 0:
            moved = site[1]
        elif h <= 6:
            z = int.from_bytes(c.differences.take(h), "little")
            moved = (z >> 1) ^ -(z & 1)
        elif h == 7:
            moved = c.differences.u64() - site[0]
        else:
            moved = c.moved
        c.moved = site[1] = moved & M64
        site[0] = (site[0] + moved) & M64
        out.append(site[0])
    said = {}
    if code & 16:
        i = -1
        while True:
            skip = c.frames.varint()
            if skip == 0:
                break
            i += skip
            page = out[i] >> 12
            p = c.frames.difference((c.last_frame[1] + page - c.last_frame[0]) & M64)
            c.last_frame = (page, p)
            said[i] = (page, p)
    for i, va in enumerate(out):
        page = va >> 12
        k = (page ^ page >> 16) & 0xFFFF
        if i in said:
            c.frame_entries[k] = said[i]
        assert c.frame_entries[k][0] == page, "a physical page that was never said"
        s = c.shape[number][i]
        count["stores" if s & 1 else "loads"] += 1
        sink("write" if s & 1 else "read", va, 1 << (s >> 1 & 7), c.frame_entries[k][1], user, v)
    return made + n, insns


def event(e, s, user, v, count, sink):
    kind = e.byte()
    d = lambda key: s.__setitem__(key, e.difference(s[key])) or s[key]

    def entry():
        s["entry"] = (s["entry"] + e.u64()) & M64
        return s["entry"]

    count["event", kind] += 1
    if kind in (0, 1):
        sink(("root", "control")[kind], v, e.byte(), e.u64())
    elif kind == 2:
        how = e.byte()
        page = d("page") << 12
        sink("table", v, page, how >> 1, how & 1)
        index = 0
        for _ in range(e.varint()):
            index += e.varint()
            sink("entry", v, page + 8 * index, entry())
            index += 1
            count["entries"] += 1
    elif kind == 3:
        sink("store", v, d("address") << 3, entry())
    elif kind == 4:
        sink("release", v, d("page") << 12)
    elif kind == 5:
        sink("invlpg", v, d("fault"))
    elif kind == 6:
        sink("invpcid", v, e.varint(), e.varint(), e.varint())
    elif kind == 7:
        sink("tlbi", v, e.varint(), e.varint())
    elif kind == 8:
        vector, fault, stack = e.byte(), d("fault"), d("stack")
        s["frame"] = [e.difference(word) for word in s["frame"]]
        sink("exception", v, vector, fault, stack, *s["frame"])
    elif kind == 9:
        sink("return", v)
    elif kind in (10, 11):
        user[v] = kind == 10
        sink("mode", v, user[v])
    elif kind == 12:
        how = e.byte()
        sink("device", v, d("device"), e.varint(), how >> 1, how & 1)
    elif kind == 13:
        sink("msr", v, e.varint(), e.u64())
    else:
        raise AssertionError("an event of kind %d" % kind)


class Enough(Exception):
    pass


def main(path, most=None):
    total, made, lines = 0, 0, []
    most = int(most) if most else 1 << 64

    def flush():
        nonlocal total, made
        total, made = zlib.crc32("".join(lines).encode(), total), made + len(lines)
        lines.clear()

    def sink(name, *numbers):
        lines.append(name + " %x" * len(numbers) % numbers + "\n")
        if len(lines) == 1 << 16 or made + len(lines) == most:
            flush()
            if made == most:
                raise Enough

    try:
        accesses, count = decode(path, sink)[4:]
        flush()
        assert accesses == sum(count[kind] for kind in ("loads", "stores", "fetches"))
        events = sum(n for kind, n in count.items() if isinstance(kind, tuple))
        assert made == accesses + events + count["entries"]
    except Enough:
        pass
    print(made, "%08x" % total)


if __name__ == "__main__":
    main(*sys.argv[1:])
