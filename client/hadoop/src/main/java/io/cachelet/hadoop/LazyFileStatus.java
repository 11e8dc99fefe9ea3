package io.cachelet.hadoop;

import io.cachelet.locality.BlockLocator;
import java.io.IOException;
import java.io.ObjectInputStream;
import org.apache.hadoop.fs.BlockLocation;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.LocatedFileStatus;

/**
 * As {@link CacheletFileStatus}, for a file system whose listings have no etags: locations are those of the newest
 * generation that is known.
 */
public final class LazyFileStatus extends LocatedFileStatus {
    private static final long serialVersionUID = 1L;

    private LazyFileStatus(FileStatus status) throws IOException {
        super(status, null);
    }

    /** The status of a listed file. */
    static LazyFileStatus listed(FileStatus status) throws IOException {
        LazyFileStatus listed = new LazyFileStatus(status);
        listed.tellLocator();
        return listed;
    }

    @Override
    public BlockLocation[] getBlockLocations() {
        return BlockLocator.get().locate(getPath().toString(), null, getLen());
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
        BlockLocator.get().listed(getPath().toString(), null, getLen());
    }

    private void readObject(ObjectInputStream in) throws IOException, ClassNotFoundException {
        in.defaultReadObject();
        tellLocator();
    }
}
