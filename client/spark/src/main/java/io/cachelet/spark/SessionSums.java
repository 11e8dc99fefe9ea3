package io.cachelet.spark;

/**
 * What daemons fetched over all of a client's sessions: a session that begins anew, after its daemon was lost, counts
 * from 0. What a session fetched after it was asked last is lost with it. Not thread-safe.
 */
final class SessionSums {
    private boolean unknown;
    private long reconnects;
    private long sessionOrigin;
    private long sessionPeer;
    private long origin;
    private long peer;

    /**
     * The daemon told what it has fetched for this session so far.
     *
     * @param reconnectsNow how often the client had to connect again
     * @param originBytes from the origin; negative if the daemon does not tell
     * @param peerBytes from other nodes; negative if the daemon does not tell
     */
    void told(long reconnectsNow, long originBytes, long peerBytes) {
        if (originBytes < 0 || peerBytes < 0) {
            unknown = true;
            return;
        }
        if (reconnectsNow != reconnects || originBytes < sessionOrigin || peerBytes < sessionPeer) {
            sessionOrigin = 0;
            sessionPeer = 0;
        }
        origin += originBytes - sessionOrigin;
        peer += peerBytes - sessionPeer;
        reconnects = reconnectsNow;
        sessionOrigin = originBytes;
        sessionPeer = peerBytes;
    }

    /** Whether a daemon did not tell; then the sums say nothing. */
    boolean isUnknown() {
        return unknown;
    }

    long originBytes() {
        return origin;
    }

    long peerBytes() {
        return peer;
    }
}
