package io.cachelet.client;

/** What a client, or the readers of one object, have done so far. Counters only grow. */
public final class ClientStats {
    /** Bytes read from held descriptors, or kept with a small object. */
    public final long localBytes;
    /** Bytes that the daemon of this node sent over its socket. */
    public final long inlineBytes;
    /** Bytes that a daemon sent over TCP. */
    public final long remoteBytes;
    /** Objects opened with a message. */
    public final long opens;
    /** Objects opened without a message, because the generation was open. */
    public final long opensShared;
    /** Requests whose answer a reader waited for. */
    public final long roundTrips;
    /** Frames sent, one-way messages included. */
    public final long messagesSent;
    /** Demand fills that a reader waited for. */
    public final long fillsWaited;
    /** Readahead requests sent. */
    public final long readaheadsSent;
    /** Readahead requests not sent because the connection was busy. */
    public final long readaheadsDropped;
    /** Descriptors received. */
    public final long grantsReceived;
    /** Descriptors closed to make room or because they were idle. */
    public final long grantsClosed;
    /** Descriptors closed because the daemon asked for it. */
    public final long grantsDropped;
    /** Times a descriptor did not arrive, or one too many did; the client reads inline for a while then. */
    public final long descriptorFailures;
    /** Chunks whose checksum did not match (with {@code verifyReads}). */
    public final long crcMismatches;
    /** Held files that could not be read or were too short; their blocks were read inline. */
    public final long fileFailures;
    /** Connections to a daemon made after an earlier one was lost. */
    public final long reconnects;
    /** Requests that the daemon answered with a bypass. */
    public final long bypasses;
    /** Requests that timed out. */
    public final long timeouts;

    /** Made of what the native library tells, in the order of the fields. */
    ClientStats(long[] told) {
        int next = 0;
        localBytes = told[next++];
        inlineBytes = told[next++];
        remoteBytes = told[next++];
        opens = told[next++];
        opensShared = told[next++];
        roundTrips = told[next++];
        messagesSent = told[next++];
        fillsWaited = told[next++];
        readaheadsSent = told[next++];
        readaheadsDropped = told[next++];
        grantsReceived = told[next++];
        grantsClosed = told[next++];
        grantsDropped = told[next++];
        descriptorFailures = told[next++];
        crcMismatches = told[next++];
        fileFailures = told[next++];
        reconnects = told[next++];
        bypasses = told[next++];
        timeouts = told[next++];
        if (next != told.length) {
            throw new IllegalStateException(
                    "the native library has " + told.length + " counters where " + next + " are known");
        }
    }

    @Override
    public String toString() {
        return "localBytes=" + localBytes
                + ", inlineBytes=" + inlineBytes
                + ", remoteBytes=" + remoteBytes
                + ", opens=" + opens
                + ", opensShared=" + opensShared
                + ", roundTrips=" + roundTrips
                + ", messagesSent=" + messagesSent
                + ", fillsWaited=" + fillsWaited
                + ", readaheadsSent=" + readaheadsSent
                + ", readaheadsDropped=" + readaheadsDropped
                + ", grantsReceived=" + grantsReceived
                + ", grantsClosed=" + grantsClosed
                + ", grantsDropped=" + grantsDropped
                + ", descriptorFailures=" + descriptorFailures
                + ", crcMismatches=" + crcMismatches
                + ", fileFailures=" + fileFailures
                + ", reconnects=" + reconnects
                + ", bypasses=" + bypasses
                + ", timeouts=" + timeouts;
    }
}
