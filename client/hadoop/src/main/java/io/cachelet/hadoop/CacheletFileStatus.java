package io.cachelet.hadoop;

import io.cachelet.locality.BlockLocator;
import java.io.IOException;
import java.io.ObjectInputStream;
import org.apache.hadoop.fs.BlockLocation;
import org.apache.hadoop.fs.s3a.S3AFileStatus;
import org.apache.hadoop.fs.s3a.S3ALocatedFileStatus;

/**
 * A listed file that says where its blocks are when it is asked, in the JVM that asks: Spark lists in executors too,
 * and plans in the driver, later and more than once.
 *
 * <p>Holds what S3A's own status holds and nothing else: no file system, no locations. Equality and order are the
 * stock class's.
 */
public final class CacheletFileStatus extends S3ALocatedFileStatus {
    private static final long serialVersionUID = 1L;

    private CacheletFileStatus(S3AFileStatus status) {
        super(status, null);
    }

    /** The status of a listed file. */
    static CacheletFileStatus listed(S3AFileStatus status) {
        CacheletFileStatus listed = new CacheletFileStatus(status);
        listed.tellLocator();
        return listed;
    }

    /**
     * Where the file's blocks are now: tiles that cover it, each with hosts of this application's executors, or none.
     */
    @Override
    public BlockLocation[] getBlockLocations() {
        return BlockLocator.get().locate(getPath().toString(), Generation.canonical(getEtag()), getLen());
    }

    @Override
    public boolean equals(Object other) {
        return super.equals(other);
    }

    @Override
    public int hashCode() {
        return super.hashCode();
    }

    private void tellLocator() {
        BlockLocator.get().listed(getPath().toString(), Generation.canonical(getEtag()), getLen());
    }

    private void readObject(ObjectInputStream in) throws IOException, ClassNotFoundException {
        in.defaultReadObject();
        tellLocator();
    }
}
