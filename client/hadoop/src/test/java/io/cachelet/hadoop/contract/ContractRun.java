package io.cachelet.hadoop.contract;

import io.cachelet.hadoop.ReadMetrics;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import org.junit.runner.Description;
import org.junit.runner.JUnitCore;
import org.junit.runner.notification.Failure;
import org.junit.runner.notification.RunListener;

/**
 * Runs Hadoop's contract suites on several setups in one JVM, and writes a line for each test and suite:
 *
 * <pre>
 * test   setup  suite  method  passed|failed|skipped  message
 * suite  setup  suite  bytes from Cachelet  bytes from the origin  grants  milliseconds
 * </pre>
 *
 * <p>Arguments: the file to write, then what {@link Setup#parse} takes, for each setup. The endpoint is the
 * property {@code cachelet.test.s3.endpoint}, the credentials AWS's environment variables.
 */
public final class ContractRun {
    /** In the order in which they run: the last one empties the bucket. */
    private static final List<String> SUITES = Arrays.asList(
            "VectoredRead",
            "Open",
            "Seek",
            "Create",
            "Mkdir",
            "Rename",
            "Delete",
            "GetFileStatus",
            "Unbuffer",
            "ContentSummary",
            "Etag",
            "PathHandle",
            "StreamIOStatistics",
            "RootDirectory");

    private ContractRun() {}

    public static void main(String[] arguments) throws Exception {
        try (PrintWriter out = new PrintWriter(Files.newBufferedWriter(Paths.get(arguments[0])), true)) {
            for (String setup : Arrays.asList(arguments).subList(1, arguments.length)) {
                Setup.current = Setup.parse(setup);
                for (String suite : SUITES) {
                    if (Setup.current.has(suite)) {
                        load(suite).ifPresent(loaded -> run(loaded, out));
                    }
                }
            }
        }
        // Threads of the SDK outlive their file systems.
        System.exit(0);
    }

    /** A suite; none if this release of Hadoop has not got it. */
    private static Optional<Class<?>> load(String suite) {
        try {
            return Optional.of(Class.forName(ContractSuites.class.getName() + "$" + suite));
        } catch (ClassNotFoundException e) {
            throw new IllegalArgumentException("there is no suite " + suite, e);
        } catch (NoClassDefFoundError e) {
            return Optional.empty();
        }
    }

    private static void run(Class<?> suite, PrintWriter out) {
        ReadMetrics before = ReadMetrics.snapshot();
        JUnitCore junit = new JUnitCore();
        junit.addListener(new RunListener() {
            private final Set<Description> ended = new HashSet<>();

            @Override
            public void testFailure(Failure failure) {
                say(failure.getDescription(), "failed", failure.getTrace());
            }

            @Override
            public void testAssumptionFailure(Failure failure) {
                say(failure.getDescription(), "skipped", failure.getMessage());
            }

            @Override
            public void testIgnored(Description test) {
                say(test, "skipped", "ignored");
            }

            @Override
            public void testFinished(Description test) {
                say(test, "passed", "");
            }

            private void say(Description test, String outcome, String message) {
                if (ended.add(test)) {
                    String line = String.valueOf(message)
                            .replaceAll("\\s*\\R\\s*", " | ")
                            .replace('\t', ' ');
                    out.println(String.join(
                            "\t",
                            "test",
                            Setup.current.name,
                            suite.getSimpleName(),
                            String.valueOf(test.getMethodName()),
                            outcome,
                            line.length() > 2000 ? line.substring(0, 2000) : line));
                }
            }
        });
        long millis = junit.run(suite).getRunTime();
        ReadMetrics after = ReadMetrics.snapshot();
        out.println(String.join(
                "\t",
                "suite",
                Setup.current.name,
                suite.getSimpleName(),
                Long.toString(after.localBytes + after.inlineBytes - before.localBytes - before.inlineBytes),
                Long.toString(after.originBytes - before.originBytes),
                Long.toString(after.grants - before.grants),
                Long.toString(millis)));
    }
}
