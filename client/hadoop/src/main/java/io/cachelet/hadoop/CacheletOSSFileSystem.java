package io.cachelet.hadoop;

import com.aliyun.oss.model.ObjectMetadata;
import io.cachelet.client.NativeLibrary;
import io.cachelet.client.StoreFingerprint;
import java.io.IOException;
import java.net.URI;
import java.util.Locale;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.BlockLocation;
import org.apache.hadoop.fs.FSDataInputStream;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.LocatedFileStatus;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.PathFilter;
import org.apache.hadoop.fs.RemoteIterator;
import org.apache.hadoop.fs.aliyun.oss.AliyunOSSFileSystem;
import org.apache.hadoop.util.functional.RemoteIterators;

/**
 * Hadoop's file system for Aliyun OSS (hadoop-aliyun, which must be on the class path), with reads through the Cachelet
 * daemon of this node, and block locations. Users set {@code fs.oss.impl=io.cachelet.hadoop.CacheletOSSFileSystem}.
 *
 * <p>Opening a file asks OSS for the object's metadata with the caller's own credentials, as the stock class does.
 * hadoop-aliyun's streams cannot be pinned to a generation. Therefore a stream that has delivered bytes of Cachelet and
 * goes on at OSS asks for the etag again after each of its reads, before it delivers, and fails with
 * {@link GenerationChangedException} where it is another one.
 */
public class CacheletOSSFileSystem extends AliyunOSSFileSystem {
    private static final long UNKNOWN_STORE_NANOS = 30_000_000_000L;

    private ReadSettings settings;
    private NodeDaemon daemon;
    private byte[] fingerprint;
    private volatile boolean storeUnknown;
    private volatile long storeUnknownSince;

    @Override
    public void initialize(URI name, Configuration conf) throws IOException {
        settings = new ReadSettings(conf);
        super.initialize(name, conf);
        daemon = settings.enabled ? NodeDaemon.of(settings) : null;
        String endpoint = S3Store.hostPort(getConf().getTrimmed("fs.oss.endpoint", ""), true);
        fingerprint = StoreFingerprint.of("oss", endpoint.toLowerCase(Locale.ROOT), "", getUri().getHost(), false);
        if (!settings.enabled) {
            OnceLog.info(
                    "disabled", "Cachelet is off (" + SettingKeys.ENABLED + "=false): reads are the stock classes'");
        } else if (daemon == null) {
            OnceLog.warn("no_native_library", "reads are the stock classes': " + NativeLibrary.whyUnavailable());
        }
    }

    @Override
    public FSDataInputStream open(Path file, int bufferSize) throws IOException {
        Path path = makeQualified(file);
        String why = whyStock();
        if (why == null) {
            ObjectMetadata metadata = metadata(path);
            if (metadata != null && Generation.isStrong(metadata.getETag())) {
                StreamCounters counters = new StreamCounters(statistics, null);
                Origin origin = new OssFile(path, metadata, bufferSize);
                return new FSDataInputStream(
                        new CacheletInputStream(new PinnedReader(daemon, origin, counters), counters));
            }
            why = metadata == null ? "not_an_object" : "no_etag";
        }
        ReadMetrics.fellBack(why);
        return super.open(file, bufferSize);
    }

    private String whyStock() {
        if (daemon == null) {
            return settings.enabled ? "no_native_library" : "disabled";
        }
        return storeUnknown && System.nanoTime() - storeUnknownSince < UNKNOWN_STORE_NANOS ? "unknown_store" : null;
    }

    /** What OSS says now about the object at a path; null if there is none, or none that the caller may read. */
    private ObjectMetadata metadata(Path path) {
        String key = key(path);
        return key.isEmpty() ? null : getStore().getObjectMetadata(key);
    }

    private static String key(Path path) {
        String absolute = path.toUri().getPath();
        return absolute.startsWith("/") ? absolute.substring(1) : absolute;
    }

    private FSDataInputStream openStock(Path path, int bufferSize) throws IOException {
        return super.open(path, bufferSize);
    }

    /** One file as it is read: the link between a stream and the stock class. */
    private final class OssFile implements Origin {
        private final Path path;
        private final int bufferSize;
        private final Generation generation;

        OssFile(Path path, ObjectMetadata metadata, int bufferSize) {
            this.path = path;
            this.bufferSize = bufferSize;
            generation = new Generation(
                    "oss://" + getUri().getHost() + "/" + key(path),
                    metadata.getETag(),
                    metadata.getContentLength(),
                    null,
                    fingerprint);
        }

        @Override
        public Generation generation() {
            return generation;
        }

        @Override
        public FSDataInputStream open() throws IOException {
            return openStock(path, bufferSize);
        }

        @Override
        public boolean pinsGeneration() {
            return false;
        }

        @Override
        public void verify() throws IOException {
            ObjectMetadata now = metadata(path);
            String etag = now == null ? null : Generation.canonical(now.getETag());
            if (etag == null || !etag.equals(Generation.canonical(generation.etag))) {
                throw changed(
                        "read", "it was " + generation + " and is " + (etag == null ? "gone" : "etag " + etag), null);
            }
        }

        @Override
        public boolean isRemembered() {
            return false;
        }

        @Override
        public boolean refresh() {
            return false;
        }

        @Override
        public boolean isChange(IOException error) {
            return error instanceof GenerationChangedException;
        }

        @Override
        public IOException changed(String operation, String detail, Throwable cause) {
            return new GenerationChangedException(path.toString(), operation, detail, cause);
        }

        @Override
        public void storeIsUnknown() {
            storeUnknownSince = System.nanoTime();
            storeUnknown = true;
        }
    }

    // Listings, with statuses that know where blocks are.

    @Override
    public FileStatus[] listStatus(Path directory) throws IOException {
        FileStatus[] stock = super.listStatus(directory);
        FileStatus[] located = new FileStatus[stock.length];
        for (int i = 0; i < stock.length; i++) {
            located[i] = stock[i].isFile() ? LazyFileStatus.listed(stock[i]) : stock[i];
        }
        return located;
    }

    @Override
    public RemoteIterator<LocatedFileStatus> listLocatedStatus(Path directory, PathFilter filter) throws IOException {
        return RemoteIterators.mappingRemoteIterator(
                super.listLocatedStatus(directory, filter), CacheletOSSFileSystem::located);
    }

    @Override
    public RemoteIterator<LocatedFileStatus> listFiles(Path directory, boolean recursive) throws IOException {
        return RemoteIterators.mappingRemoteIterator(
                super.listFiles(directory, recursive), CacheletOSSFileSystem::located);
    }

    private static LocatedFileStatus located(LocatedFileStatus status) throws IOException {
        return status.isFile() ? LazyFileStatus.listed(status) : status;
    }

    @Override
    public BlockLocation[] getFileBlockLocations(FileStatus file, long start, long length) {
        if (file == null) {
            return null;
        }
        return Locations.overlapping(makeQualified(file.getPath()).toString(), null, file.getLen(), start, length);
    }

    @Override
    public BlockLocation[] getFileBlockLocations(Path file, long start, long length) throws IOException {
        return getFileBlockLocations(getFileStatus(file), start, length);
    }
}
