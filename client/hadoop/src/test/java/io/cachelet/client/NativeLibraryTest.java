package io.cachelet.client;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;
import static org.junit.Assume.assumeTrue;

import java.io.File;
import java.io.InputStream;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.List;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;

/** Where the library is found, and what is said where it cannot be had: a reason, and never an exception. */
public class NativeLibraryTest {
    @Rule
    public final TemporaryFolder folder = new TemporaryFolder();

    /** The classes of this module, loaded anew, with other resources in place of some. */
    private static final class Fresh extends URLClassLoader {
        private final String hidden;
        private final URL instead;

        Fresh(String hidden, URL instead) throws Exception {
            super(classPath(), ClassLoader.getSystemClassLoader().getParent());
            this.hidden = hidden;
            this.instead = instead;
        }

        private static URL[] classPath() throws Exception {
            List<URL> urls = new ArrayList<>();
            for (String entry : System.getProperty("java.class.path").split(File.pathSeparator)) {
                urls.add(Paths.get(entry).toUri().toURL());
            }
            return urls.toArray(new URL[0]);
        }

        @Override
        public URL findResource(String name) {
            return name.startsWith(hidden) ? instead : super.findResource(name);
        }

        boolean load(Object file, Object directory) throws Exception {
            return (Boolean) loadClass(NativeLibrary.class.getName())
                    .getMethod("load", String.class, String.class)
                    .invoke(
                            null,
                            file == null ? null : file.toString(),
                            directory == null ? null : directory.toString());
        }

        boolean isAvailable() throws Exception {
            return (Boolean) ask("isAvailable");
        }

        String why() throws Exception {
            return (String) ask("whyUnavailable");
        }

        private Object ask(String method) throws Exception {
            return loadClass(NativeLibrary.class.getName()).getMethod(method).invoke(null);
        }
    }

    private static Fresh fresh() throws Exception {
        return new Fresh("nothing is hidden", null);
    }

    private Path library() throws Exception {
        Path file = folder.newFile("lib.so").toPath();
        try (InputStream library =
                NativeLibrary.class.getResourceAsStream("/io/cachelet/native/linux-x86_64/libcachelet_jni.so")) {
            assumeTrue("there is a library for x86_64 to try with", library != null);
            Files.copy(library, file, java.nio.file.StandardCopyOption.REPLACE_EXISTING);
        }
        return file;
    }

    private static void assertSays(String why, String... words) {
        for (String word : words) {
            assertTrue(why, why.contains(word));
        }
    }

    @Test
    public void everyClassLoaderHasALibraryOfItsOwnAndNoFileStaysBehind() throws Exception {
        File directory = folder.newFolder("unpacked");
        for (int i = 0; i < 3; i++) {
            Fresh loader = fresh();
            assertTrue(loader.why(), loader.load(null, directory));
            assertEquals("", loader.why());
        }
        assertEquals(0, directory.list().length);
    }

    @Test
    public void theDirectoryIsMadeIfItIsMissing() throws Exception {
        Path directory = folder.getRoot().toPath().resolve("not/there/yet");
        Fresh loader = fresh();
        assertTrue(loader.why(), loader.load("", directory));
    }

    @Test
    public void aConfiguredFileIsLoadedInPlaceOfTheJars() throws Exception {
        Fresh loader = new Fresh("io/cachelet/native/", null);
        assertTrue(loader.load(library(), null));
        assertTrue(loader.isAvailable());
    }

    @Test
    public void aSystemPropertyGoesFirst() throws Exception {
        System.setProperty(NativeLibrary.PATH_PROPERTY, "/nowhere/of/the/property.so");
        try {
            Fresh loader = fresh();
            assertFalse(loader.load(library(), null));
            assertSays(loader.why(), "/nowhere/of/the/property.so");
        } finally {
            System.clearProperty(NativeLibrary.PATH_PROPERTY);
        }
    }

    @Test
    public void anAttemptWithOtherSettingsMaySucceedWhereOneHasFailed() throws Exception {
        Fresh loader = fresh();
        assertFalse(loader.load("/nowhere.so", null));
        assertFalse(loader.isAvailable());
        assertTrue(loader.why(), loader.load(null, folder.getRoot()));
        assertTrue("once it is loaded, it stays", loader.load("/nowhere.so", null));
    }

    @Test
    public void aJarWithoutALibrarySaysForWhichPlatform() throws Exception {
        Fresh loader = new Fresh("io/cachelet/native/", null);
        assertFalse(loader.isAvailable());
        assertSays(loader.why(), "no native library for linux-", "fs.cachelet.native.path");
    }

    @Test
    public void aLibraryOfAnotherVersionIsNotUsed() throws Exception {
        Path properties = folder.newFile("version.properties").toPath();
        Files.write(properties, "version=99.1.2\n".getBytes());
        Fresh loader = new Fresh(
                "io/cachelet/client/version.properties", properties.toUri().toURL());
        assertFalse(loader.isAvailable());
        assertSays(loader.why(), "99.1.2", NativeLibrary.version());
    }

    @Test
    public void aLibraryOfAnotherArchitectureIsNotLoaded() throws Exception {
        Path library = library();
        byte[] elf = Files.readAllBytes(library);
        assertEquals("an ELF file for x86_64", 62, elf[18]);
        elf[18] = (byte) 183; // e_machine: aarch64
        Files.write(library, elf);
        Fresh loader = fresh();
        assertFalse(loader.load(library, null));
        assertSays(loader.why(), "loading " + library + " failed");
    }

    @Test
    public void aFileThatIsNoLibraryIsNotLoaded() throws Exception {
        Path garbage = folder.newFile("garbage.so").toPath();
        Files.write(garbage, "nothing of the sort".getBytes());
        Fresh loader = fresh();
        assertFalse(loader.load(garbage, null));
        assertSays(loader.why(), garbage.toString());
    }

    @Test
    public void whatIsNoDirectoryIsNamedWithTheSetting() throws Exception {
        Path file = folder.newFile("a-file").toPath();
        Fresh loader = fresh();
        assertFalse(loader.load(null, file));
        assertSays(loader.why(), file.toString(), "fs.cachelet.native.dir");
    }

    @Test
    public void aPlatformWithoutALibraryIsNamed() throws Exception {
        String[][] platforms = {{"os.arch", "riscv64", "riscv64"}, {"os.name", "Mac OS X", "Mac OS X"}};
        for (String[] platform : platforms) {
            String real = System.getProperty(platform[0]);
            System.setProperty(platform[0], platform[1]);
            try {
                Fresh loader = fresh();
                assertFalse(loader.isAvailable());
                assertSays(loader.why(), platform[2]);
            } finally {
                System.setProperty(platform[0], real);
            }
        }
    }

    @Test
    public void aDirectoryMountedNoexecIsNamedWithTheSetting() throws Exception {
        File directory = folder.newFolder("noexec");
        assumeTrue(
                "a tmpfs can be mounted here, as root",
                run("mount", "-t", "tmpfs", "-o", "noexec,size=8m", "tmpfs", directory.getPath()) == 0);
        try {
            Fresh loader = fresh();
            assertFalse(loader.load(null, directory));
            assertSays(loader.why(), directory.getPath(), "noexec", "fs.cachelet.native.dir");
            assertEquals("nothing is left behind", 0, directory.list().length);
        } finally {
            assertEquals(0, run("umount", directory.getPath()));
        }
    }

    private static int run(String... command) throws Exception {
        return new ProcessBuilder(command)
                .redirectErrorStream(true)
                .redirectOutput(new File("/dev/null"))
                .start()
                .waitFor();
    }
}
