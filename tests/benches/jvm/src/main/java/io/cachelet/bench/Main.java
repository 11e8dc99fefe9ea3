package io.cachelet.bench;

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
 * Starts a worker over one file, runs {@link Reads} on it and prints each means' speed as a share of C's.
 *
 * <p>Arguments: the directory of the programs, the {@code pread} program, rounds. Every round runs each benchmark once, in a
 * fresh JVM: what disturbs the machine for a while disturbs all alike. Shares are medians over the rounds, each of figures
 * of the same round.
 */
public final class Main {
  private static final int FILE_BYTES = 256 << 20;

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
    String[] properties = {
      "-Dbench.socket.dir=" + directory.resolve("dev/node-1/socket"), "-Dbench.uri=file://lake/data",
      "-Dbench.file=" + file, "-Dbench.pread=" + Paths.get(arguments[1]).toAbsolutePath()};
    Map<String, Map<String, List<Double>>> microseconds = new LinkedHashMap<>();
    for (int round = 0; round < rounds; round++) {
      Collection<RunResult> results = new Runner(
          new OptionsBuilder().include(Reads.class.getName()).forks(1).jvmArgsAppend(properties)
              .verbosity(VerboseMode.SILENT).shouldFailOnError(true).build()).run();
      for (RunResult result : results) {
        String means = result.getParams().getBenchmark().replaceAll(".*\\.", "");
        microseconds.computeIfAbsent(result.getParams().getParam("pass"), pass -> new LinkedHashMap<>())
            .computeIfAbsent(means, name -> new ArrayList<>()).add(result.getPrimaryResult().getScore());
      }
      System.err.println("round " + (round + 1) + " of " + rounds);
    }
    microseconds.forEach(Main::print);
  }

  private static void print(String pass, Map<String, List<Double>> means) {
    String[] words = pass.split(" ");
    double bytes = Double.parseDouble(words[0]) * Double.parseDouble(words[1]);
    System.out.printf("%s reads of %s bytes, %s%n", words[1], words[0],
        words[2].equals("next") ? "one after the other" : "at random");
    System.out.printf("  %-22s %10s %10s %8s%n", "", "GB/s", "of C", "best");
    List<Double> baseline = means.get("cPread");
    means.forEach((name, taken) -> System.out.printf("  %-22s %10.2f %10.2f %8.2f%n", name,
        bytes / median(taken) / 1e3, median(ratios(baseline, taken)), least(baseline) / least(taken)));
    System.out.printf("  %-22s %10s %10.2f %8.2f%n", "vectored / 100 reads", "",
        median(ratios(means.get("cacheletHundredReads"), means.get("cacheletVectored"))),
        least(means.get("cacheletHundredReads")) / least(means.get("cacheletVectored")));
  }

  private static List<Double> ratios(List<Double> of, List<Double> by) {
    List<Double> ratios = new ArrayList<>();
    for (int i = 0; i < of.size(); i++) {
      ratios.add(of.get(i) / by.get(i));
    }
    return ratios;
  }

  private static double least(List<Double> numbers) {
    return numbers.stream().mapToDouble(Double::doubleValue).min().orElse(Double.NaN);
  }

  private static double median(List<Double> numbers) {
    double[] sorted = numbers.stream().mapToDouble(Double::doubleValue).sorted().toArray();
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
