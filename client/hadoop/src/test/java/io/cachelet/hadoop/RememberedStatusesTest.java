package io.cachelet.hadoop;

import static org.junit.Assert.assertNotNull;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertSame;
import static org.junit.Assert.assertTrue;

import java.util.concurrent.CompletableFuture;
import org.apache.hadoop.fs.FileStatus;
import org.apache.hadoop.fs.Path;
import org.junit.Test;

public class RememberedStatusesTest {
    private static final long SECOND = 1_000_000_000L;
    private static final Path PATH = new Path("s3a://lake/t/a");

    private final RememberedStatuses<FileStatus> strict = new RememberedStatuses<>(new Freshness("", ""));
    private final RememberedStatuses<FileStatus> relaxed =
            new RememberedStatuses<>(new Freshness("s3a://lake/=60s", ""));
    private final FileStatus file = new FileStatus(1, false, 1, 1, 1, PATH);

    @Test
    public void anOpenWithinASecondTakesTheStatusThatItsThreadAskedForAndAStatusNeverDoes() {
        strict.rememberForOpen(PATH, file, 0, 0, 0);
        assertNull(strict.forStatus(PATH, 1));
        assertSame(file, strict.forOpen(PATH, SECOND - 1));
        strict.rememberForOpen(PATH, file, 0, 0, 10);
        assertSame(file, strict.forOpen(PATH, SECOND + 9));
        strict.rememberForOpen(PATH, file, 0, 0, 10);
        assertNull(strict.forOpen(PATH, SECOND + 10));
    }

    @Test
    public void aStatusServesOneOpenAndWhatAnOpenAskedForServesNoOther() {
        strict.rememberForOpen(PATH, file, 0, 0, 0);
        assertSame(file, strict.forOpen(PATH, 1));
        assertNull(strict.forOpen(PATH, 2));
        strict.remember(PATH, file, 0, 0);
        assertNull(strict.forOpen(PATH, 1));
    }

    @Test
    public void aTaskBelievesWhatItWasToldForASecondAndNoOtherTaskDoes() {
        TaskScope.begin();
        try {
            strict.rememberForOpen(PATH, file, 0, 0, 10);
            for (int i = 0; i < 3; i++) {
                assertSame(file, strict.forOpen(PATH, SECOND + 9));
                assertSame(file, strict.forStatus(PATH, SECOND + 9));
            }
            assertNull(strict.forStatus(PATH, SECOND + 10));
            assertNull(CompletableFuture.supplyAsync(() -> strict.forStatus(PATH, 11))
                    .join());
            TaskScope.begin();
            assertNull("the next task on this thread", strict.forStatus(PATH, 11));
        } finally {
            TaskScope.end();
        }
        assertNull("after the last task", strict.forStatus(PATH, 11));
    }

    @Test
    public void whatAnOpenAskedForServesItsTaskUntilSomethingChanges() {
        TaskScope.begin();
        try {
            strict.rememberOpened(PATH, file, 0, 0, 0);
            assertSame(file, strict.forStatus(PATH, 1));
            assertSame(file, strict.forOpen(PATH, 1));
            strict.changed(PATH);
            assertNull(strict.forStatus(PATH, 1));
        } finally {
            TaskScope.end();
        }
        strict.rememberOpened(PATH, file, strict.changesSoFar(), 0, 0);
        assertNull(strict.forOpen(PATH, 1));
    }

    @Test
    public void aTaskAlwaysAsksForNamesThatAreOverwrittenByDesign() {
        Path log = new Path("s3a://lake/t/_delta_log/_last_checkpoint");
        TaskScope.begin();
        try {
            strict.rememberForOpen(log, file, 0, 0, 0);
            assertNull(strict.forStatus(log, 1));
            assertSame(file, strict.forOpen(log, 1));
            assertNull(strict.forOpen(log, 1));
            strict.rememberOpened(log, file, 0, 0, 0);
            assertNull(strict.forStatus(log, 1));
        } finally {
            TaskScope.end();
        }
    }

    @Test
    public void anotherThreadsOpenAsksForItself() {
        strict.rememberForOpen(PATH, file, 0, 0, 0);
        assertNull(CompletableFuture.supplyAsync(() -> strict.forOpen(PATH, 1)).join());
    }

    @Test
    public void whatMayBeStaleIsForEverybodyAsLongAsTheSettingSays() {
        relaxed.rememberForOpen(PATH, file, 0, 0, 0);
        assertSame(
                file,
                CompletableFuture.supplyAsync(() -> relaxed.forStatus(PATH, 60 * SECOND - 1))
                        .join());
        assertNull(relaxed.forStatus(PATH, 60 * SECOND));
    }

    @Test
    public void directoriesAreNeverRemembered() {
        relaxed.rememberForOpen(PATH, new FileStatus(0, true, 1, 1, 1, PATH), 0, 0, 0);
        assertNull(relaxed.forOpen(PATH, 1));
    }

    @Test
    public void aChangeOfThePathOrOfAParentForgetsAndAnAnswerThatWasUnderWayIsNotTaken() {
        for (Path changed : new Path[] {PATH, PATH.getParent(), new Path("s3a://lake/")}) {
            long before = relaxed.changesSoFar();
            relaxed.rememberForOpen(PATH, file, before, 0, 0);
            assertNotNull(relaxed.forOpen(PATH, 1));
            relaxed.changed(changed);
            assertNull(changed.toString(), relaxed.forOpen(PATH, 1));
            relaxed.rememberForOpen(PATH, file, before, 0, 0);
            assertNull(changed.toString(), relaxed.forOpen(PATH, 1));
        }
    }

    @Test
    public void aChangeElsewhereForgetsNothingElse() {
        relaxed.rememberForOpen(PATH, file, 0, 0, 0);
        relaxed.changed(new Path("s3a://lake/t/ab"));
        relaxed.changed(new Path("s3a://lake/t/a/b"));
        assertSame(file, relaxed.forOpen(PATH, 1));
    }

    @Test
    public void aPathThatIsWrittenHereIsNotRememberedAgain() {
        relaxed.writes(PATH);
        relaxed.rememberForOpen(PATH, file, relaxed.changesSoFar(), 0, 0);
        assertNull(relaxed.forOpen(PATH, 1));
    }

    @Test
    public void manyPathsTakeBoundedRoom() {
        for (int i = 0; i < 20_000; i++) {
            Path path = new Path("s3a://lake/t/" + i);
            relaxed.remember(path, new FileStatus(1, false, 1, 1, 1, path), 0, 0);
        }
        assertTrue(relaxed.size() <= 10_000);
        assertNotNull(relaxed.forStatus(new Path("s3a://lake/t/19999"), 1));
    }

    @Test
    public void afterMoreWritesThanCanBeFollowedNothingIsRemembered() {
        for (int i = 0; i < 20_000; i++) {
            relaxed.writes(new Path("s3a://lake/w/" + i));
        }
        relaxed.rememberForOpen(PATH, file, relaxed.changesSoFar(), 0, 0);
        assertNull(relaxed.forOpen(PATH, 1));
    }
}
