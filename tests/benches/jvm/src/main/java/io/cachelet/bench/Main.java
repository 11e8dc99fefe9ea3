package io.cachelet.bench;

import io.cachelet.client.CacheletClient;
import io.cachelet.client.CacheletException;
import io.cachelet.client.CacheletObject;
import io.cachelet.client.ClientOptions;
import java.io.File;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.openjdk.jmh.results.RunResult;
import org.openjdk.jmh.runner.Runner;
import org.openjdk.jmh.runner.options.OptionsBuilder;
import org.openjdk.jmh.runner.options.VerboseMode;

/**
 * Starts a worker over one file, runs {@link Reads} on it and prints each means' speed as a share of what it is compared
 * with: C's pread, or as many positioned reads.
 *
 * <p>Arguments: the directory of the programs, the baseline's library, rounds. Every round runs each benchmark in a fresh
 * JVM; shares are medians over the rounds. On a machine that others use, those by the processor's time say more.
 */
public final class Main {
  /** One block. */
  private static final int FILE_BYTES = 128 << 20;

  private Main() {}

  public static void main(String[] arguments) throws Exception {
    Path programs = Paths.get(arguments[0]).toAbsolutePath();
    int rounds = Integer.parseInt(arguments[2]);
    Path directory = Files.createTempDirectory("cachelet-bench-jvm");
    Path root = Files.createDirectory(directory.resolve("root"));
    Path file = root.resolve("data");
    Random random = new Random(1);
    byte[] mebibyte = new byte[1 << 20];
    try (OutputStream out = Files.newOutputStream(file)) {
      for (int written = 0; written < FILE_BYTES; written += mebibyte.length) {
        random.nextBytes(mebibyte);
        out.write(mebibyte);
      }
    }
    Path ready = directory.resolve("ready.json");
    File log = directory.resolve("dev.log").toFile();
    Process cluster = new ProcessBuilder(
        programs.resolve("cachelet").toString(), "dev", "--nodes", "1", "--store", "file", "--root", root.toString(),
        "--dir", directory.resolve("dev").toString(), "--ready-file", ready.toString())
        .redirectErrorStream(true).redirectOutput(log).start();
    Runtime.getRuntime().addShutdownHook(new Thread(() -> end(cluster, directory)));
    while (!Files.exists(ready)) {
      if (cluster.waitFor(50, TimeUnit.MILLISECONDS)) {
        throw new IllegalStateException(new String(Files.readAllBytes(log.toPath())));
      }
    }
    Path sockets = directory.resolve("dev/node-1/socket");
    readOnce(sockets.toString());
    Path cached = cachedFile(directory.resolve("dev/node-1/cache"));
    String[] properties = {
      "-Dbench.socket.dir=" + sockets, "-Dbench.uri=file://lake/data",
      "-Dbench.file=" + cached, "-Dbench.offset=" + (Files.size(cached) - FILE_BYTES),
      "-Dbench.baseline=" + Paths.get(arguments[1]).toAbsolutePath()};
    Map<String, Map<String, List<double[]>>> figures = new LinkedHashMap<>();
    for (int round = 0; round < rounds; round++) {
      Collection<RunResult> results = new Runner(
          new OptionsBuilder().include(Reads.class.getName()).forks(1).jvmArgsAppend(properties)
              .verbosity(VerboseMode.SILENT).shouldFailOnError(true).build()).run();
      for (RunResult result : results) {
        String means = result.getParams().getBenchmark().replaceAll(".*\\.", "");
        double elapsed = of(result, "elapsed");
        double cpu = of(result, "cpu");
        figures.computeIfAbsent(result.getParams().getParam("pattern"), absent -> new LinkedHashMap<>())
            .computeIfAbsent(means, absent -> new ArrayList<>())
            .add(new double[] {
              of(result, "bytes") / elapsed, of(result, "bytes") / cpu, of(result, "elapsedOfBaseline") / elapsed,
              of(result, "cpuOfBaseline") / cpu});
      }
      System.err.println("round " + (round + 1) + " of " + rounds);
    }
    figures.forEach(Main::print);
  }

  private static double of(RunResult result, String counter) {
    return result.getSecondaryResults().get(counter).getScore();
  }

  private static void print(String pattern, Map<String, List<double[]>> means) {
    String[] words = pattern.split(" ");
    System.out.printf("reads of %s bytes, %s%n", words[0],
        words[1].equals("next") ? "one after the other" : "at random");
    System.out.printf("  %-20s %-16s %8s %12s %8s %8s%n", "", "compared with", "GB/s", "GB/s of CPU", "share", "by CPU");
    means.forEach((name, rounds) -> System.out.printf("  %-20s %-16s %8.2f %12.2f %8.2f %8.2f%n", name,
        name.equals("cacheletVectored") ? "positioned reads" : "C pread", median(rounds, 0), median(rounds, 1),
        median(rounds, 2), median(rounds, 3)));
  }

  /** The file that Cachelet's reads go to, which the others are given too: its header, then the data. */
  private static Path cachedFile(Path cache) throws Exception {
    try (Stream<Path> files = Files.walk(cache)) {
      return files.filter(each -> each.toFile().length() >= FILE_BYTES).findFirst()
          .orElseThrow(() -> new IllegalStateException("nothing was cached in " + cache));
    }
  }

  /** Brings the file in, as soon as it is old enough to be trusted. */
  private static void readOnce(String sockets) throws Exception {
    try (CacheletClient client = CacheletClient.create(new ClientOptions().socketDir(sockets))) {
      while (true) {
        try (CacheletObject object = client.open("file://lake/data", null, -1, null, null, 0, 0)) {
          byte[] piece = new byte[8 << 20];
          for (long at = 0; at < object.sizeBytes(); at += piece.length) {
            object.read(at, piece, 0, piece.length);
          }
          return;
        } catch (CacheletException e) {
          if (!e.reason().equals("not_cacheable")) {
            throw e;
          }
          Thread.sleep(100);
        }
      }
    }
  }

  private static double median(List<double[]> rounds, int figure) {
    double[] sorted = rounds.stream().mapToDouble(each -> each[figure]).sorted().toArray();
    int middle = sorted.length / 2;
    return sorted.length % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  }

  private static void end(Process cluster, Path directory) {
    cluster.destroy();
    try {
      cluster.waitFor(30, TimeUnit.SECONDS);
      try (Stream<Path> files = Files.walk(directory)) {
        for (Path each : (Iterable<Path>) files.sorted(Comparator.reverseOrder())::iterator) {
          Files.deleteIfExists(each);
        }
      }
    } catch (Exception e) {
      System.err.println("cleaning up " + directory + " failed: " + e);
    }
  }
}
