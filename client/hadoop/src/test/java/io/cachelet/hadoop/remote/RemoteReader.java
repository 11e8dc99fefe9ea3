package io.cachelet.hadoop.remote;

import io.cachelet.hadoop.ReadMetrics;
import io.cachelet.hadoop.TaskScope;
import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintWriter;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.URI;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.FSDataInputStream;
import org.apache.hadoop.fs.FileRange;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.Path;

/**
 * A JVM that reads what it is told to, so that a test can change the world between two reads of one stream.
 *
 * <p>Listens on a port of loopback, which its first line of output names. Takes one command a line, fields separated by
 * tabs, and answers each with one line: {@code ok} and results, or {@code error}, the exception's class and message.
 * {@code task} before a command makes it one of a task.
 * Arguments: settings as {@code key=value}.
 */
public final class RemoteReader {
    private final Configuration conf = new Configuration();
    private final Map<String, FSDataInputStream> streams = new HashMap<>();
    private FileSystem ours;
    private FileSystem stock;

    private RemoteReader() {}

    public static void main(String[] settings) throws Exception {
        RemoteReader reader = new RemoteReader();
        for (String setting : settings) {
            int equals = setting.indexOf('=');
            reader.conf.set(setting.substring(0, equals), setting.substring(equals + 1));
        }
        try (ServerSocket server = new ServerSocket(0, 1, InetAddress.getByName("127.0.0.1"))) {
            System.out.println("listening on port " + server.getLocalPort());
            try (Socket socket = server.accept();
                    BufferedReader in =
                            new BufferedReader(new InputStreamReader(socket.getInputStream(), StandardCharsets.UTF_8));
                    PrintWriter out = new PrintWriter(socket.getOutputStream(), true)) {
                for (String line = in.readLine(); line != null; line = in.readLine()) {
                    out.print(reader.answer(line.split("\t")) + "\n");
                    out.flush();
                }
            }
        }
        // Threads of the SDK outlive their file systems.
        System.exit(0);
    }

    private String answer(String[] command) {
        try {
            return "ok\t" + run(command);
        } catch (Exception | Error e) {
            return "error\t" + e.getClass().getName() + "\t"
                    + String.valueOf(e.getMessage()).replaceAll("[\\t\\r\\n]+", " ");
        }
    }

    private String run(String[] command) throws Exception {
        switch (command[0]) {
            case "start":
                ours = FileSystem.newInstance(URI.create(command[1]), conf);
                Configuration plain = new Configuration(conf);
                plain.set("fs.s3a.impl", "org.apache.hadoop.fs.s3a.S3AFileSystem");
                plain.set("fs.oss.impl", "org.apache.hadoop.fs.aliyun.oss.AliyunOSSFileSystem");
                stock = FileSystem.newInstance(URI.create(command[1]), plain);
                return ours.getClass().getName();
            case "open":
                streams.put(command[1], ours.open(new Path(command[2])));
                return "";
            case "pread":
                return pread(streams.get(command[1]), Long.parseLong(command[2]), Integer.parseInt(command[3]));
            case "interrupted":
                Thread.currentThread().interrupt();
                try {
                    return pread(streams.get(command[1]), Long.parseLong(command[2]), Integer.parseInt(command[3]));
                } finally {
                    Thread.interrupted();
                }
            case "vectored":
                return Vectored.read(
                        streams.get(command[1]),
                        Long.parseLong(command[2]),
                        Integer.parseInt(command[3]),
                        Integer.parseInt(command[4]));
            case "read":
                return readAll(streams.get(command[1]), Integer.parseInt(command[2]));
            case "close":
                streams.remove(command[1]).close();
                return "";
            case "whole":
                try (FSDataInputStream in = ours.open(new Path(command[1]))) {
                    return readAll(in, 1 << 20);
                }
            case "compare":
                return compare(new Path(command[1]));
            case "openclose":
                return openAndClose(new Path(command[1]), Integer.parseInt(command[2]));
            case "task":
                TaskScope.begin();
                try {
                    return run(Arrays.copyOfRange(command, 1, command.length));
                } finally {
                    TaskScope.end();
                }
            case "threads":
                return readInThreads(command[1], Integer.parseInt(command[2]), Integer.parseInt(command[3]));
            case "status":
                FileStatus status = ours.getFileStatus(new Path(command[1]));
                return status.getLen() + "\t" + status.isDirectory();
            case "list":
                StringBuilder listed = new StringBuilder();
                for (FileStatus one : ours.listStatus(new Path(command[1]))) {
                    listed.append(one.getClass().getSimpleName())
                            .append(' ')
                            .append(one.getLen())
                            .append('\t');
                }
                return listed.toString().trim();
            case "bytesread":
                return Long.toString(statistics(ours));
            case "metrics":
                ReadMetrics metrics = ReadMetrics.snapshot();
                return String.join(
                        "\t",
                        Long.toString(metrics.localBytes),
                        Long.toString(metrics.inlineBytes),
                        Long.toString(metrics.originBytes),
                        Long.toString(metrics.opens),
                        Long.toString(metrics.grants),
                        metrics.fallbacks.toString());
            case "descriptors":
                String[] open = new File("/proc/self/fd").list();
                return Integer.toString(open == null ? -1 : open.length);
            default:
                throw new IllegalArgumentException("no command " + command[0]);
        }
    }

    @SuppressWarnings("deprecation")
    private static long statistics(FileSystem fs) {
        return FileSystem.getStatistics(fs.getScheme(), fs.getClass())
                .getThreadStatistics()
                .getBytesRead();
    }

    private static String pread(FSDataInputStream in, long position, int length) throws Exception {
        byte[] bytes = new byte[length];
        long started = System.nanoTime();
        in.readFully(position, bytes);
        return sha256(bytes) + "\t" + (System.nanoTime() - started) / 1_000_000;
    }

    /** Apart from the rest, because Hadoop before 3.3.5 has no such classes. */
    private static final class Vectored {
        /** One range in so many parts, to direct buffers but for the last, if that is longer. */
        static String read(FSDataInputStream in, long position, int length, int parts) throws Exception {
            List<FileRange> ranges = new ArrayList<>();
            int each = length / parts;
            for (int part = 0; part < parts; part++) {
                int rest = length - part * each;
                ranges.add(FileRange.createFileRange(position + part * (long) each, part + 1 < parts ? each : rest));
            }
            in.readVectored(ranges, size -> size == each ? ByteBuffer.allocateDirect(size) : ByteBuffer.allocate(size));
            MessageDigest digest = MessageDigest.getInstance("SHA-256");
            for (FileRange range : ranges) {
                digest.update(range.getData().get());
            }
            return hex(digest.digest());
        }
    }

    /** Reads from the stream's position to the end, and says the content's hash and the longest time of one read. */
    private static String readAll(FSDataInputStream in, int atOnce) throws Exception {
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        byte[] bytes = new byte[atOnce];
        long total = 0;
        long longest = 0;
        while (true) {
            long started = System.nanoTime();
            int read = in.read(bytes);
            longest = Math.max(longest, System.nanoTime() - started);
            if (read < 0) {
                return hex(digest.digest()) + "\t" + total + "\t" + longest / 1_000_000;
            }
            digest.update(bytes, 0, read);
            total += read;
        }
    }

    /** Whether stock S3A and ours say the same of a path: status, bytes in every way of reading, or error. */
    private String compare(Path path) {
        String theirs = outcome(stock, path);
        String mine = outcome(ours, path);
        if (!theirs.equals(mine)) {
            throw new AssertionError("stock: " + theirs + "; ours: " + mine);
        }
        return theirs;
    }

    private static String outcome(FileSystem fs, Path path) {
        try (FSDataInputStream in = fs.open(path)) {
            long length = fs.getFileStatus(path).getLen();
            String sequential = readAll(in, 100_003).split("\t")[0];
            in.seek(0);
            StringBuilder said = new StringBuilder(sequential);
            int small = 0;
            MessageDigest digest = MessageDigest.getInstance("SHA-256");
            for (int next = in.read(); next >= 0 && small < 70_000; next = in.read(), small++) {
                digest.update((byte) next);
            }
            said.append(' ').append(hex(digest.digest()));
            for (long position : new long[] {0, 1, length / 2, length - 1, length}) {
                byte[] bytes = new byte[4096];
                int read = position < 0 ? -1 : readUpTo(in, position, bytes);
                said.append(' ')
                        .append(read)
                        .append(' ')
                        .append(Arrays.hashCode(Arrays.copyOf(bytes, Math.max(0, read))));
            }
            return length + " " + said;
        } catch (Exception e) {
            return e.getClass().getName();
        }
    }

    private static int readUpTo(FSDataInputStream in, long position, byte[] bytes) throws IOException {
        int total = 0;
        while (total < bytes.length) {
            int read = in.read(position + total, bytes, total, bytes.length - total);
            if (read < 0) {
                return total == 0 ? -1 : total;
            }
            total += read;
        }
        return total;
    }

    private String openAndClose(Path path, int times) throws IOException {
        ByteBuffer direct = ByteBuffer.allocateDirect(1000);
        for (int i = 0; i < times; i++) {
            try (FSDataInputStream in = ours.open(path)) {
                in.readFully(i, new byte[1000]);
                direct.clear();
                in.readFully(i + 1, direct);
            }
        }
        return "";
    }

    /** Positioned reads of a stream by several threads; each compares with what the stream gave at first. */
    private String readInThreads(String name, int threads, int reads) throws Exception {
        FSDataInputStream in = streams.get(name);
        byte[] expected = new byte[(int) in.available()];
        in.readFully(0, expected);
        AtomicReference<Throwable> failure = new AtomicReference<>();
        Thread[] running = new Thread[threads];
        for (int t = 0; t < threads; t++) {
            int seed = t;
            running[t] = new Thread(() -> {
                java.util.Random random = new java.util.Random(seed);
                byte[] bytes = new byte[10_000];
                try {
                    for (int i = 0; i < reads; i++) {
                        int position = random.nextInt(expected.length - bytes.length);
                        in.readFully(position, bytes);
                        if (!Arrays.equals(bytes, Arrays.copyOfRange(expected, position, position + bytes.length))) {
                            throw new AssertionError("wrong bytes at " + position);
                        }
                    }
                } catch (Throwable e) {
                    failure.set(e);
                }
            });
            running[t].start();
        }
        for (Thread thread : running) {
            thread.join();
        }
        if (failure.get() != null) {
            throw new AssertionError(failure.get());
        }
        return "";
    }

    private static String sha256(byte[] bytes) throws Exception {
        return hex(MessageDigest.getInstance("SHA-256").digest(bytes));
    }

    private static String hex(byte[] bytes) {
        StringBuilder hex = new StringBuilder();
        for (byte one : bytes) {
            hex.append(String.format("%02x", one));
        }
        return hex.toString();
    }
}
