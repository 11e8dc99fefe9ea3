package io.cachelet.client;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.File;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.nio.file.StandardCopyOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;

/**
 * One real worker over a directory of files, as {@code cachelet dev} starts it. The programs are those of {@code
 * cachelet.bin.dir}, by default the debug build's: {@code cargo build --bins}.
 */
final class DevCluster implements AutoCloseable {
    private static final long PATIENCE_MILLIS = 60_000;

    private final Path directory;
    private final Path root;
    private final Process process;
    private final JsonNode node;

    DevCluster(String... moreArguments) throws Exception {
        directory = Files.createTempDirectory("cachelet-java-test");
        root = Files.createDirectory(directory.resolve("root"));
        Path programs = Paths.get(System.getProperty("cachelet.bin.dir", "../../target/debug"))
                .toAbsolutePath();
        Path ready = directory.resolve("ready.json");
        List<String> command = new ArrayList<>();
        command.add(programs.resolve("cachelet").toString());
        for (String argument : new String[] {
            "dev",
            "--nodes",
            "1",
            "--store",
            "file",
            "--root",
            root.toString(),
            "--dir",
            directory.resolve("dev").toString(),
            "--ready-file",
            ready.toString()
        }) {
            command.add(argument);
        }
        command.addAll(Arrays.asList(moreArguments));
        File log = directory.resolve("dev.log").toFile();
        process = new ProcessBuilder(command)
                .redirectErrorStream(true)
                .redirectOutput(log)
                .start();
        long deadline = System.currentTimeMillis() + PATIENCE_MILLIS;
        while (!Files.exists(ready)) {
            if (!process.isAlive() || System.currentTimeMillis() > deadline) {
                process.destroyForcibly();
                throw new IllegalStateException(
                        command + " is not ready:\n" + new String(Files.readAllBytes(log.toPath())));
            }
            process.waitFor(20, TimeUnit.MILLISECONDS);
        }
        node = new ObjectMapper().readTree(ready.toFile()).get("nodes").get(0);
    }

    /** Writes an object, waits until the file is old enough to be trusted, and says where it is. */
    String put(String key, byte[] bytes) throws Exception {
        Path whole = Files.write(directory.resolve("coming"), bytes);
        Files.move(whole, root.resolve(key), StandardCopyOption.REPLACE_EXISTING);
        long deadline = System.currentTimeMillis() + PATIENCE_MILLIS;
        try (CacheletClient client = client()) {
            while (true) {
                try {
                    client.open(uri(key), null, -1, null, null, 0, 0).close();
                    return uri(key);
                } catch (CacheletException e) {
                    if (!e.reason().equals("not_cacheable") || System.currentTimeMillis() > deadline) {
                        throw e;
                    }
                    process.waitFor(20, TimeUnit.MILLISECONDS);
                }
            }
        }
    }

    String uri(String key) {
        return "file://lake/" + key;
    }

    String socketDir() {
        return node.get("socket_dir").asText();
    }

    ClientOptions options() {
        return new ClientOptions().socketDir(socketDir()).application("java-test");
    }

    CacheletClient client() {
        return CacheletClient.create(options());
    }

    /** Sends a signal to the daemon, by its name without SIG. */
    void signal(String name) throws Exception {
        Process kill = new ProcessBuilder("kill", "-" + name, node.get("pid").asText())
                .inheritIO()
                .start();
        if (kill.waitFor() != 0) {
            throw new IllegalStateException("kill -" + name + " failed");
        }
    }

    @Override
    public void close() throws Exception {
        process.destroy();
        if (!process.waitFor(PATIENCE_MILLIS, TimeUnit.MILLISECONDS)) {
            process.destroyForcibly();
        }
        try (Stream<Path> files = Files.walk(directory)) {
            for (Path file : (Iterable<Path>) files.sorted(Comparator.reverseOrder())::iterator) {
                Files.deleteIfExists(file);
            }
        }
    }
}
