package io.cachelet.hadoop;

import io.cachelet.locality.BlockLocator;
import java.util.ArrayList;
import java.util.List;
import org.apache.hadoop.fs.BlockLocation;

/** Block locations as Hadoop's {@code getFileBlockLocations} gives them. */
final class Locations {
    private Locations() {}

    /**
     * Where the blocks are that have bytes of {@code start .. start + length}.
     *
     * @param etag canonical, or null if unknown: then the file's blocks are those of the newest generation known
     * @throws IllegalArgumentException if {@code start} or {@code length} is negative
     */
    static BlockLocation[] overlapping(String uri, String etag, long fileLength, long start, long length) {
        if (start < 0 || length < 0) {
            throw new IllegalArgumentException("Invalid start or len parameter: " + start + ", " + length);
        }
        if (fileLength <= start) {
            return new BlockLocation[0];
        }
        long end = length > Long.MAX_VALUE - start ? Long.MAX_VALUE : start + length;
        List<BlockLocation> overlapping = new ArrayList<>();
        for (BlockLocation location : BlockLocator.get().locate(uri, etag, fileLength)) {
            if (location.getOffset() < end && location.getOffset() + location.getLength() > start) {
                overlapping.add(location);
            }
        }
        return overlapping.toArray(new BlockLocation[0]);
    }

    /** One block that no host is near. */
    static BlockLocation[] nowhere(long length) {
        return new BlockLocation[] {new BlockLocation(new String[0], new String[0], 0, length)};
    }
}
