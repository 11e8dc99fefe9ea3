package io.cachelet.client;

/** What the daemon fetched on behalf of this process's session so far, in bytes; -1 where the daemon does not tell. */
public final class FilledBytes {
    /** Fetched from the origin. */
    public final long originBytes;
    /** Fetched from other nodes' daemons. */
    public final long peerBytes;

    FilledBytes(long originBytes, long peerBytes) {
        this.originBytes = originBytes;
        this.peerBytes = peerBytes;
    }

    @Override
    public String toString() {
        return "originBytes=" + originBytes + ", peerBytes=" + peerBytes;
    }
}
