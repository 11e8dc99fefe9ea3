package io.cachelet.client;

import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.nio.file.StandardCopyOption;
import java.nio.file.attribute.PosixFilePermission;
import java.util.EnumSet;
import java.util.Locale;
import java.util.Objects;
import java.util.Properties;
import java.util.stream.Stream;

/**
 * Finds and loads the native library, once a class loader. Nothing here throws or logs: without the library the jar is
 * plain S3A, and the caller says so once.
 *
 * <p>Where it looks: the file that the system property {@code cachelet.native.path} names; the file that the caller
 * configured; the jar's own copy for this platform, which is unpacked to a file of its own (a JVM loads a file for one
 * class loader only) and unlinked as soon as it is loaded.
 */
public final class NativeLibrary {
    /** A library file to load instead of the jar's. */
    public static final String PATH_PROPERTY = "cachelet.native.path";
    /** The directory that the jar's library is unpacked to. */
    public static final String DIRECTORY_PROPERTY = "cachelet.native.dir";

    private static final String FILE = "libcachelet_jni.so";

    /** The outcome of the last attempt. */
    private static volatile Outcome outcome;

    private NativeLibrary() {}

    /** Whether the library is loaded; tries with the defaults if nobody did. */
    public static boolean isAvailable() {
        Outcome current = outcome;
        return current == null ? load(null, null) : current.isLoaded();
    }

    /** Why the library is unavailable and what to do about it; empty if it is available. */
    public static String whyUnavailable() {
        isAvailable();
        return outcome.why;
    }

    /** The jar's version, which is also the library's if that is available. */
    public static String version() {
        return JarVersion.TEXT;
    }

    /**
     * Loads the library with these settings, unless it is loaded, or was attempted with the same ones. The system
     * properties go first.
     *
     * @param file a library file to load instead of the jar's; null or empty: the jar's
     * @param directory where to unpack the jar's; null or empty: {@code java.io.tmpdir}
     * @return whether it is loaded now
     */
    public static boolean load(String file, String directory) {
        String chosenFile = firstOf(System.getProperty(PATH_PROPERTY), file, "");
        String chosenDirectory =
                firstOf(System.getProperty(DIRECTORY_PROPERTY), directory, System.getProperty("java.io.tmpdir"));
        synchronized (NativeLibrary.class) {
            Outcome last = outcome;
            if (last == null || !last.isLoaded() && !last.isOf(chosenFile, chosenDirectory)) {
                outcome = new Outcome(chosenFile, chosenDirectory, attempt(chosenFile, chosenDirectory));
            }
            return outcome.isLoaded();
        }
    }

    private static String firstOf(String... choices) {
        return Stream.of(choices)
                .filter(choice -> choice != null && !choice.isEmpty())
                .findFirst()
                .orElse("");
    }

    /** Says why it did not succeed; empty if it did. */
    private static String attempt(String file, String directory) {
        try {
            if (!file.isEmpty()) {
                System.load(Paths.get(file).toAbsolutePath().toString());
                return whyVersionsDiffer(file);
            }
            String platform = platform();
            String resource = "/io/cachelet/native/" + platform + "/" + FILE;
            try (InputStream library = NativeLibrary.class.getResourceAsStream(resource)) {
                if (library == null) {
                    return "the jar has no native library for " + platform + " (" + resource
                            + "); build it with scripts/native-library or name one with fs.cachelet.native.path";
                }
                loadUnpacked(library, directory);
            }
            return whyVersionsDiffer("the jar's " + platform + " library");
        } catch (Unsupported e) {
            return e.getMessage();
        } catch (IOException e) {
            return "unpacking the native library into " + directory + " failed: " + e
                    + "; name another directory with fs.cachelet.native.dir";
        } catch (LinkageError | RuntimeException e) {
            return "loading " + (file.isEmpty() ? "the jar's native library" : file) + " failed: " + e.getMessage();
        }
    }

    private static void loadUnpacked(InputStream library, String directory) throws IOException, Unsupported {
        Path parent = Files.createDirectories(Paths.get(directory));
        Path unpacked = Files.createTempFile(parent, "libcachelet_jni-", ".so");
        try {
            Files.copy(library, unpacked, StandardCopyOption.REPLACE_EXISTING);
            Files.setPosixFilePermissions(
                    unpacked, EnumSet.of(PosixFilePermission.OWNER_READ, PosixFilePermission.OWNER_EXECUTE));
            if (!Files.isExecutable(unpacked)) {
                throw new Unsupported("nothing may be executed in " + parent
                        + " (is it mounted noexec?), so that the native library cannot be "
                        + "loaded from there; name another directory with fs.cachelet.native.dir");
            }
            System.load(unpacked.toAbsolutePath().toString());
        } finally {
            Files.deleteIfExists(unpacked);
        }
    }

    private static String whyVersionsDiffer(String what) {
        String library = Native.version();
        return library.equals(JarVersion.TEXT)
                ? ""
                : what + " has version " + library + " and the jar version " + JarVersion.TEXT
                        + "; they must be the same";
    }

    /** The name of this platform's directory in the jar. */
    private static String platform() throws Unsupported {
        String system = System.getProperty("os.name", "");
        if (!system.equalsIgnoreCase("linux")) {
            throw new Unsupported("there is no native library for " + system + ", only for Linux");
        }
        if (isMusl()) {
            throw new Unsupported("the native library needs glibc 2.17 or later, and this process runs on musl");
        }
        String architecture = System.getProperty("os.arch", "").toLowerCase(Locale.ROOT);
        switch (architecture) {
            case "amd64":
            case "x86_64":
                return "linux-x86_64";
            case "aarch64":
            case "arm64":
                return "linux-aarch64";
            default:
                throw new Unsupported("there is no native library for the architecture " + architecture
                        + ", only for x86_64 and aarch64");
        }
    }

    /** Whether this process is linked to musl: loading a library built for glibc could crash it. */
    private static boolean isMusl() {
        try (Stream<String> maps = Files.lines(Paths.get("/proc/self/maps"))) {
            return maps.anyMatch(line -> line.contains("/ld-musl-"));
        } catch (IOException | RuntimeException e) {
            return false;
        }
    }

    /** What an attempt with some settings came to. */
    private static final class Outcome {
        private final String file;
        private final String directory;
        private final String why;

        Outcome(String file, String directory, String why) {
            this.file = file;
            this.directory = directory;
            this.why = why;
        }

        boolean isLoaded() {
            return why.isEmpty();
        }

        boolean isOf(String otherFile, String otherDirectory) {
            return file.equals(otherFile) && Objects.equals(directory, otherDirectory);
        }
    }

    /** Why this process cannot have the library. */
    private static final class Unsupported extends Exception {
        Unsupported(String message) {
            super(message);
        }
    }

    /** The version that Maven built the jar as. */
    private static final class JarVersion {
        static final String TEXT = read();

        private static String read() {
            try (InputStream file = NativeLibrary.class.getResourceAsStream("version.properties")) {
                Properties properties = new Properties();
                properties.load(file);
                return properties.getProperty("version", "unknown");
            } catch (IOException | RuntimeException e) {
                return "unknown";
            }
        }
    }
}
