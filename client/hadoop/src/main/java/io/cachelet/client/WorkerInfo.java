package io.cachelet.client;

/** What the daemon of this node says about itself. */
public final class WorkerInfo {
    /** The node it runs on: what the locality service calls this place. */
    public final String node;
    /** Its worker UUID. */
    public final String workerUuid;
    /** Its version. */
    public final String version;
    /** {@code host:port} of the locality service's HTTP side; empty: none. */
    public final String serviceAddress;
    /** Block size in bytes. */
    public final long blockBytes;
    /** Whether this process gets descriptors: {@code enabled}, {@code unprotected} or {@code disabled}. */
    public final String grants;
    /** Why it does not; empty when it does. */
    public final String grantsDisabledReason;

    /** Made of what the native library tells, in the order of the fields. */
    WorkerInfo(String[] told) {
        node = told[0];
        workerUuid = told[1];
        version = told[2];
        serviceAddress = told[3];
        blockBytes = Long.parseLong(told[4]);
        grants = told[5];
        grantsDisabledReason = told[6];
    }

    @Override
    public String toString() {
        return "worker " + workerUuid + " (version " + version + ") on node " + node + ", grants " + grants;
    }
}
