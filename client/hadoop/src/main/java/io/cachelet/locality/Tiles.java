package io.cachelet.locality;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.ObjLongConsumer;
import org.apache.hadoop.fs.BlockLocation;

/**
 * One object cut into tiles, each with the nodes to read it on, best first.
 *
 * <p>Invariant: tiles cover [0, length) exactly, in order and without overlap, whatever a service answered; an answer
 * that does not becomes one tile without nodes. Immutable.
 */
final class Tiles {
    /** A task can name three hosts; Spark drops what is beyond. */
    static final int MAX_HOSTS = 3;

    /**
     * Blocks smaller than this are joined. Spark gives a split the hosts of the one block that it overlaps most, so
     * that with blocks of 1 MiB a single one of them would decide for a split of 128 MiB.
     */
    static final long MIN_TILE_BYTES = 32L << 20;

    /** Nodes kept for a tile; more than hosts, because some nodes lose their executors before they are asked for. */
    private static final int MAX_NODES = 8;

    private static final String[] NOBODY = {};

    private final long length;
    private final long[] offsets;
    private final String[][] nodes;

    private Tiles(long length, long[] offsets, String[][] nodes) {
        this.length = length;
        this.offsets = offsets;
        this.nodes = nodes;
    }

    /** An object that nobody is known to be near to. */
    static Tiles unknown(long length) {
        return new Tiles(length, new long[] {0}, new String[][] {NOBODY});
    }

    int count() {
        return length <= 0 ? 0 : offsets.length;
    }

    /**
     * What a scheduler is told.
     *
     * <p>At most {@link #MAX_HOSTS} hosts a tile: one of each node in turn, then a second one of each. Where a node has
     * several executors, different tiles name different ones first, the same ones at every call.
     *
     * @param uri decides, with the tile, which of a node's executors come first
     */
    BlockLocation[] toBlockLocations(String uri, ExecutorDirectory.Snapshot executors) {
        if (length <= 0) {
            // As FileSystem.getFileBlockLocations answers for an empty file.
            return new BlockLocation[0];
        }
        BlockLocation[] locations = new BlockLocation[offsets.length];
        for (int tile = 0; tile < offsets.length; tile++) {
            String[] hosts = hosts(nodes[tile], executors, mix(uri.hashCode()) + tile);
            String[] names = new String[hosts.length];
            for (int i = 0; i < hosts.length; i++) {
                names[i] = hosts[i] + ":0";
            }
            locations[tile] = new BlockLocation(names, hosts, offsets[tile], end(tile) - offsets[tile]);
        }
        return locations;
    }

    /** Each node of each tile, with the tile's bytes. */
    void forEachNode(ObjLongConsumer<String> consumer) {
        for (int tile = 0; tile < count(); tile++) {
            for (String node : nodes[tile]) {
                consumer.accept(node, end(tile) - offsets[tile]);
            }
        }
    }

    private long end(int tile) {
        return tile + 1 < offsets.length ? offsets[tile + 1] : length;
    }

    private static String[] hosts(String[] nodes, ExecutorDirectory.Snapshot executors, int rotation) {
        List<String> hosts = new ArrayList<>(MAX_HOSTS);
        int most = 0;
        for (int turn = 0; turn == 0 || turn < most; turn++) {
            for (String node : nodes) {
                String[] here = executors.hosts(node);
                if (here == null || turn >= here.length) {
                    continue;
                }
                most = Math.max(most, here.length);
                String host = here[Math.floorMod(rotation + turn, here.length)];
                if (!hosts.contains(host)) {
                    hosts.add(host);
                }
                if (hosts.size() == MAX_HOSTS) {
                    return hosts.toArray(NOBODY);
                }
            }
        }
        return hosts.isEmpty() ? NOBODY : hosts.toArray(NOBODY);
    }

    /** Spreads the low bits: names of one table differ in few characters. */
    private static int mix(int hash) {
        int mixed = (hash ^ (hash >>> 16)) * 0x7feb352d;
        mixed = (mixed ^ (mixed >>> 15)) * 0x846ca68b;
        return mixed ^ (mixed >>> 16);
    }

    /** Takes the blocks of an answer one by one and joins small ones. */
    static final class Builder {
        private final long length;
        private final List<long[]> starts = new ArrayList<>(2);
        private final List<String[]> nodes = new ArrayList<>(2);
        private long next;
        private long tileStart;
        private Map<String, Long> tileNodes = new HashMap<>();
        private String[] single;
        private boolean several;
        private boolean valid = true;

        Builder(long length) {
            this.length = length;
        }

        /**
         * The next block.
         *
         * @param ranked its nodes, best first
         * @param resident whether they hold the block, rather than being where it belongs
         */
        void block(long offset, long blockLength, List<String> ranked, boolean resident) {
            if (!valid || offset != next || blockLength <= 0 || blockLength > length - offset) {
                valid = false;
                return;
            }
            next += blockLength;
            List<String> kept = ranked.size() > MAX_NODES ? ranked.subList(0, MAX_NODES) : ranked;
            if (offset == tileStart) {
                single = kept.toArray(NOBODY);
                several = false;
            } else {
                several = true;
            }
            for (int rank = 0; rank < kept.size(); rank++) {
                // A byte that is there outweighs any number of bytes that merely belong there; better ranks win ties.
                long weight = (resident ? blockLength << 20 : blockLength) - rank;
                tileNodes.merge(kept.get(rank), weight, Long::sum);
            }
            if (next - tileStart >= MIN_TILE_BYTES || next == length) {
                close();
            }
        }

        private void close() {
            starts.add(new long[] {tileStart});
            nodes.add(several ? byWeight() : single);
            tileNodes = new HashMap<>();
            tileStart = next;
        }

        private String[] byWeight() {
            List<Map.Entry<String, Long>> ranked = new ArrayList<>(tileNodes.entrySet());
            ranked.sort(
                    Map.Entry.<String, Long>comparingByValue().reversed().thenComparing(Map.Entry.comparingByKey()));
            String[] names = new String[Math.min(ranked.size(), MAX_NODES)];
            for (int i = 0; i < names.length; i++) {
                names[i] = ranked.get(i).getKey();
            }
            return names;
        }

        /** The tiles, or one without nodes if the blocks did not tile the object. */
        Tiles build() {
            if (!valid || next != length || starts.isEmpty()) {
                return unknown(length);
            }
            long[] offsets = new long[starts.size()];
            Arrays.setAll(offsets, i -> starts.get(i)[0]);
            return new Tiles(length, offsets, nodes.toArray(new String[0][]));
        }
    }
}
