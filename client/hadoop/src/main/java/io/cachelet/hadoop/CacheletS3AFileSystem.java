package io.cachelet.hadoop;

import io.cachelet.client.NativeLibrary;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.net.URI;
import java.util.Collections;
import java.util.EnumSet;
import java.util.concurrent.CompletableFuture;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.BlockLocation;
import org.apache.hadoop.fs.CreateFlag;
import org.apache.hadoop.fs.FSDataInputStream;
import org.apache.hadoop.fs.FSDataOutputStream;
import org.apache.hadoop.fs.FSDataOutputStreamBuilder;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.LocatedFileStatus;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.PathFilter;
import org.apache.hadoop.fs.RemoteIterator;
import org.apache.hadoop.fs.impl.OpenFileParameters;
import org.apache.hadoop.fs.permission.FsPermission;
import org.apache.hadoop.fs.s3a.RemoteFileChangedException;
import org.apache.hadoop.fs.s3a.S3AFileStatus;
import org.apache.hadoop.fs.s3a.S3AFileSystem;
import org.apache.hadoop.fs.s3a.S3ALocatedFileStatus;
import org.apache.hadoop.fs.s3a.Statistic;
import org.apache.hadoop.fs.s3a.impl.ChangeDetectionPolicy;
import org.apache.hadoop.fs.s3a.impl.S3AMultipartUploaderBuilder;
import org.apache.hadoop.fs.s3a.statistics.CommitterStatistics;
import org.apache.hadoop.fs.statistics.IOStatistics;
import org.apache.hadoop.fs.statistics.IOStatisticsAggregator;
import org.apache.hadoop.util.Progressable;
import org.apache.hadoop.util.functional.FutureIO;
import org.apache.hadoop.util.functional.RemoteIterators;

/**
 * S3A, with reads through the Cachelet daemon of this node, and block locations. Users set
 * {@code fs.s3a.impl=io.cachelet.hadoop.CacheletS3AFileSystem} and keep their {@code s3a://} paths and S3A settings;
 * {@link SettingKeys} has what can be set besides.
 *
 * <p>Opening a file asks S3 for its status, with the caller's own credentials, as S3A does: that proves the right to
 * read and names the generation that the stream is about. What Cachelet cannot or may not serve is read with stock S3A
 * streams: with client-provided or client-side encryption, below {@code __magic}, without a strong etag, with S3
 * Select.
 */
public class CacheletS3AFileSystem extends S3AFileSystem {
    private static final String MAGIC = "__magic";
    private static final String SELECT = "fs.s3a.select.sql";
    private static final long UNKNOWN_STORE_NANOS = 30_000_000_000L;

    /** What {@code open} means in terms of {@code openFile}. */
    private static final OpenFileParameters PLAIN =
            new OpenFileParameters().withMandatoryKeys(Collections.emptySet()).withOptions(new Configuration(false));

    private ReadSettings settings;
    private RememberedStatuses<S3AFileStatus> remembered;
    private NodeDaemon daemon;
    private byte[] fingerprint;
    private String bucketInPaths;
    /** Why every file is opened with a stock stream; null if that is not so. */
    private String alwaysStock;

    private volatile boolean storeUnknown;
    private volatile long storeUnknownSince;
    private volatile boolean closed;

    @Override
    public void initialize(URI name, Configuration conf) throws IOException {
        settings = new ReadSettings(conf);
        remembered = new RememberedStatuses<>(settings.freshness);
        super.initialize(name, conf);
        bucketInPaths = getUri().getHost();
        fingerprint = S3Store.fingerprint(getConf(), getBucket());
        daemon = settings.enabled ? NodeDaemon.of(settings) : null;
        alwaysStock = whyAlwaysStock();
    }

    private String whyAlwaysStock() {
        if (!settings.enabled) {
            OnceLog.info("disabled", "Cachelet is off (" + SettingKeys.ENABLED + "=false): reads are stock S3A's");
            return "disabled";
        }
        if (daemon == null) {
            OnceLog.warn("no_native_library", "reads are stock S3A's: " + NativeLibrary.whyUnavailable());
            return "no_native_library";
        }
        String encryption = getS3EncryptionAlgorithm() == null
                ? ""
                : getS3EncryptionAlgorithm().name();
        if (encryption.equals("SSE_C") || encryption.startsWith("CSE")) {
            OnceLog.warn(
                    "encryption " + getBucket(),
                    "reads of bucket " + getBucket()
                            + " are stock S3A's: objects encrypted with keys that only the client has ("
                            + getS3EncryptionAlgorithm().getMethod() + ") are not cached");
            return "encryption";
        }
        return null;
    }

    // Opening.

    @Override
    public FSDataInputStream open(Path file, int bufferSize) throws IOException {
        Path path = makeQualified(file);
        String why = whyStock(path);
        if (why != null) {
            ReadMetrics.fellBack(why);
            return super.open(file, bufferSize);
        }
        S3AFile opened = resolve(path, PLAIN);
        if (opened == null) {
            return super.open(file, bufferSize);
        }
        return stream(opened);
    }

    @Override
    public CompletableFuture<FSDataInputStream> openFileWithOptions(Path file, OpenFileParameters parameters)
            throws IOException {
        Path path = makeQualified(file);
        String why = parameters.getOptions().get(SELECT) != null ? "select" : whyStock(path);
        if (why != null) {
            ReadMetrics.fellBack(why);
            return super.openFileWithOptions(file, parameters);
        }
        FileStatus status = parameters.getStatus();
        if (status != null && status.isDirectory()) {
            return super.openFileWithOptions(file, parameters);
        }
        S3AFileStatus given = withEtag(status);
        boolean isPlain = status == null || given != null && given.getPath().equals(path);
        if (!isPlain || !parameters.getMandatoryKeys().isEmpty()) {
            checkAsStock(path, parameters);
        }
        if (given != null) {
            return CompletableFuture.completedFuture(stream(new S3AFile(path, at(path, given), false, parameters)));
        }
        CompletableFuture<FSDataInputStream> future = new CompletableFuture<>();
        try {
            S3AFile opened = resolve(path, parameters);
            if (opened != null) {
                future.complete(stream(opened));
                return future;
            }
        } catch (FileNotFoundException e) {
            // Stock S3A may leave this to the first read.
        } catch (IOException | RuntimeException e) {
            future.completeExceptionally(e);
            return future;
        }
        return super.openFileWithOptions(file, parameters);
    }

    /** Lets stock S3A complain about parameters, at no request. */
    private void checkAsStock(Path path, OpenFileParameters parameters) throws IOException {
        FileStatus given = parameters.getStatus();
        Path named = given == null ? path : given.getPath();
        S3AFileStatus status = new S3AFileStatus(0, 0, named, getDefaultBlockSize(path), getUsername(), null, null);
        FutureIO.awaitFuture(super.openFileWithOptions(path, copyOf(parameters).withStatus(status)))
                .close();
    }

    private static OpenFileParameters copyOf(OpenFileParameters parameters) {
        return new OpenFileParameters()
                .withMandatoryKeys(parameters.getMandatoryKeys())
                .withOptions(parameters.getOptions())
                .withBufferSize(parameters.getBufferSize())
                .withStatus(parameters.getStatus());
    }

    /** Why this path is opened with a stock stream; null: it is not. */
    private String whyStock(Path path) {
        if (alwaysStock != null) {
            return alwaysStock;
        }
        if (closed) {
            return "closed";
        }
        if (storeUnknown && System.nanoTime() - storeUnknownSince < UNKNOWN_STORE_NANOS) {
            return "unknown_store";
        }
        String key = path.toUri().getPath();
        return key.contains("/" + MAGIC + "/") || key.endsWith("/" + MAGIC) ? "magic_path" : null;
    }

    /** The generation of the file at a path, remembered or asked for; null if stock S3A is to open it. */
    private S3AFile resolve(Path path, OpenFileParameters parameters) throws IOException {
        S3AFileStatus known = remembered.forOpen(path, System.nanoTime());
        S3AFileStatus status = known == null ? ask(path, false) : known;
        if (status.isDirectory()) {
            return null;
        }
        if (!Generation.isStrong(status.getEtag())) {
            OnceLog.warn(
                    "no_etag",
                    "objects without a strong etag, such as " + path + ", are read with stock S3A: nothing names their "
                            + "generation");
            ReadMetrics.fellBack("no_etag");
            return null;
        }
        return new S3AFile(path, status, known != null, parameters);
    }

    private FSDataInputStream stream(S3AFile file) {
        incrementStatistic(Statistic.INVOCATION_OPEN);
        IOStatistics ours = getIOStatistics();
        StreamCounters counters = new StreamCounters(
                statistics, ours instanceof IOStatisticsAggregator ? (IOStatisticsAggregator) ours : null);
        return new FSDataInputStream(new CacheletInputStream(new PinnedReader(daemon, file, counters), counters));
    }

    private FSDataInputStream openStock(Path path, OpenFileParameters parameters) throws IOException {
        return FutureIO.awaitFuture(super.openFileWithOptions(path, parameters));
    }

    /** The status with its etag, if it is one of S3A's for a file. */
    private static S3AFileStatus withEtag(FileStatus status) {
        S3AFileStatus own = null;
        if (status instanceof S3AFileStatus) {
            own = (S3AFileStatus) status;
        } else if (status instanceof S3ALocatedFileStatus) {
            own = ((S3ALocatedFileStatus) status).toS3AFileStatus();
        }
        return own != null && own.isFile() && Generation.isStrong(own.getEtag()) ? own : null;
    }

    /** The same status under the path that was opened. */
    private S3AFileStatus at(Path path, S3AFileStatus status) {
        return new S3AFileStatus(
                status.getLen(),
                status.getModificationTime(),
                path,
                status.getBlockSize(),
                status.getOwner(),
                status.getEtag(),
                status.getVersionId());
    }

    /** One file as it is read: the link between a stream and stock S3A. */
    private final class S3AFile implements Origin {
        private final Path path;
        private final OpenFileParameters parameters;
        private S3AFileStatus status;
        private boolean wasRemembered;

        S3AFile(Path path, S3AFileStatus status, boolean wasRemembered, OpenFileParameters parameters) {
            this.path = path;
            this.status = status;
            this.wasRemembered = wasRemembered;
            this.parameters = parameters;
        }

        @Override
        public Generation generation() {
            return new Generation(
                    "s3a://" + bucketInPaths + "/" + pathToKey(path),
                    status.getEtag(),
                    status.getLen(),
                    status.getVersionId(),
                    fingerprint);
        }

        @Override
        public FSDataInputStream open() throws IOException {
            return openStock(path, copyOf(parameters).withStatus(status));
        }

        @Override
        public boolean pinsGeneration() {
            ChangeDetectionPolicy policy = getChangeDetectionPolicy();
            switch (policy.getMode()) {
                case Server:
                case Client:
                    return policy.getSource() == ChangeDetectionPolicy.Source.ETag
                            || policy.getSource() == ChangeDetectionPolicy.Source.VersionId
                                    && status.getVersionId() != null;
                default:
                    return false;
            }
        }

        @Override
        public void verify() throws IOException {
            throw changed(
                    "read",
                    "Cachelet stopped serving after it had delivered bytes of " + generation()
                            + ", and S3A's change detection (" + getChangeDetectionPolicy()
                            + ") cannot make sure that S3 still has that generation",
                    null);
        }

        @Override
        public boolean isRemembered() {
            return wasRemembered;
        }

        @Override
        public boolean refresh() throws IOException {
            if (!wasRemembered) {
                return false;
            }
            wasRemembered = false;
            remembered.forget(path);
            S3AFileStatus now = ask(path, false);
            if (now.isDirectory() || !Generation.isStrong(now.getEtag())) {
                return false;
            }
            status = now;
            return true;
        }

        @Override
        public boolean isChange(IOException error) {
            return error instanceof RemoteFileChangedException;
        }

        @Override
        public IOException changed(String operation, String detail, Throwable cause) {
            remembered.forget(path);
            return new RemoteFileChangedException(path.toString(), operation, detail, cause);
        }

        @Override
        public void storeIsUnknown() {
            storeUnknownSince = System.nanoTime();
            storeUnknown = true;
        }
    }

    // Statuses.

    @Override
    public FileStatus getFileStatus(Path file) throws IOException {
        Path path = makeQualified(file);
        S3AFileStatus known = closed ? null : remembered.forStatus(path, System.nanoTime());
        return known == null ? ask(path, true) : known;
    }

    /** Asks S3, and remembers the answer; {@code forOpen}: for an open by this thread too. */
    private S3AFileStatus ask(Path path, boolean forOpen) throws IOException {
        long changes = remembered.changesSoFar();
        long now = System.nanoTime();
        S3AFileStatus status = (S3AFileStatus) super.getFileStatus(path);
        if (forOpen) {
            remembered.rememberForOpen(path, status, changes, now, System.nanoTime());
        } else {
            remembered.rememberOpened(path, status, changes, now, System.nanoTime());
        }
        return status;
    }

    // Listings, with statuses that know where blocks are.

    @Override
    public FileStatus[] listStatus(Path directory) throws IOException {
        Listing listing = new Listing();
        FileStatus[] stock = super.listStatus(directory);
        FileStatus[] located = new FileStatus[stock.length];
        for (int i = 0; i < stock.length; i++) {
            located[i] = listing.located(stock[i]);
        }
        return located;
    }

    @Override
    public RemoteIterator<FileStatus> listStatusIterator(Path directory) throws IOException {
        Listing listing = new Listing();
        return RemoteIterators.mappingRemoteIterator(super.listStatusIterator(directory), listing::located);
    }

    @Override
    public RemoteIterator<LocatedFileStatus> listLocatedStatus(Path directory, PathFilter filter) throws IOException {
        Listing listing = new Listing();
        return RemoteIterators.mappingRemoteIterator(super.listLocatedStatus(directory, filter), listing::relocated);
    }

    @Override
    public RemoteIterator<LocatedFileStatus> listFiles(Path directory, boolean recursive) throws IOException {
        Listing listing = new Listing();
        return RemoteIterators.mappingRemoteIterator(super.listFiles(directory, recursive), listing::relocated);
    }

    /** One listing under way: what it tells is as old as its beginning. */
    private final class Listing {
        private final long changes = remembered.changesSoFar();
        private final long asked = System.nanoTime();

        FileStatus located(FileStatus status) {
            S3AFileStatus own = withEtag(status);
            if (own == null) {
                return status;
            }
            remembered.remember(own.getPath(), own, changes, asked);
            return CacheletFileStatus.listed(own);
        }

        LocatedFileStatus relocated(LocatedFileStatus status) {
            FileStatus located = located(status);
            return located instanceof CacheletFileStatus ? (CacheletFileStatus) located : unlocated(status);
        }

        /** A directory, or a file of no known generation: no hosts, because S3A's would match nobody. */
        private LocatedFileStatus unlocated(LocatedFileStatus status) {
            if (!status.isFile()) {
                return status;
            }
            return new LocatedFileStatus(status, Locations.nowhere(status.getLen()));
        }
    }

    @Override
    public BlockLocation[] getFileBlockLocations(FileStatus file, long start, long length) throws IOException {
        if (file == null) {
            return null;
        }
        S3AFileStatus own = withEtag(file);
        String etag = own == null ? null : Generation.canonical(own.getEtag());
        return Locations.overlapping(makeQualified(file.getPath()).toString(), etag, file.getLen(), start, length);
    }

    @Override
    public BlockLocation[] getFileBlockLocations(Path file, long start, long length) throws IOException {
        if (file == null) {
            throw new NullPointerException();
        }
        Path path = makeQualified(file);
        FileStatus known = closed ? null : remembered.forStatus(path, System.nanoTime());
        return getFileBlockLocations(known == null ? ask(path, false) : known, start, length);
    }

    // What changes files: forgotten before, so that nobody reads what is going away, and after.

    @Override
    public FSDataOutputStream create(
            Path file,
            FsPermission permission,
            boolean overwrite,
            int bufferSize,
            short replication,
            long blockSize,
            Progressable progress)
            throws IOException {
        remembered.writes(makeQualified(file));
        return super.create(file, permission, overwrite, bufferSize, replication, blockSize, progress);
    }

    @Override
    public FSDataOutputStream createNonRecursive(
            Path file,
            FsPermission permission,
            EnumSet<CreateFlag> flags,
            int bufferSize,
            short replication,
            long blockSize,
            Progressable progress)
            throws IOException {
        remembered.writes(makeQualified(file));
        return super.createNonRecursive(file, permission, flags, bufferSize, replication, blockSize, progress);
    }

    @Override
    @SuppressWarnings("rawtypes")
    public FSDataOutputStreamBuilder createFile(Path file) {
        remembered.writes(makeQualified(file));
        return super.createFile(file);
    }

    @Override
    public S3AMultipartUploaderBuilder createMultipartUploader(Path base) throws IOException {
        remembered.stop();
        return super.createMultipartUploader(base);
    }

    /** S3A's committers complete uploads of files that nobody created here. */
    @Override
    public CommitterStatistics newCommitterStatistics() {
        remembered.stop();
        return super.newCommitterStatistics();
    }

    @Override
    public boolean rename(Path source, Path target) throws IOException {
        try (Change changeOfSource = new Change(source);
                Change changeOfTarget = new Change(target)) {
            return super.rename(source, target);
        }
    }

    @Override
    public boolean delete(Path file, boolean recursive) throws IOException {
        try (Change change = new Change(file)) {
            return super.delete(file, recursive);
        }
    }

    @Override
    public void copyFromLocalFile(boolean deleteSource, boolean overwrite, Path source, Path target)
            throws IOException {
        remembered.writes(makeQualified(target));
        try (Change change = new Change(target)) {
            super.copyFromLocalFile(deleteSource, overwrite, source, target);
        }
    }

    @Override
    public void close() throws IOException {
        closed = true;
        remembered.stop();
        super.close();
    }

    private final class Change implements AutoCloseable {
        private final Path path;

        Change(Path file) {
            path = makeQualified(file);
            remembered.changed(path);
        }

        @Override
        public void close() {
            remembered.changed(path);
        }
    }
}
