package io.cachelet.hadoop;

import java.io.IOException;
import org.apache.hadoop.fs.FSDataInputStream;

/** How a stream reads its file without Cachelet: with the stock file system and the reader's own credentials. */
interface Origin {
    /** What is to be read. Changes only in {@link #refresh}. */
    Generation generation();

    /** Opens a stock stream on the generation. Costs no request until it is read. */
    FSDataInputStream open() throws IOException;

    /**
     * Whether a stock stream gives the generation's bytes or an error, whatever happens to the object. Where not, what it
     * gives after bytes of the cache is verified.
     */
    boolean pinsGeneration();

    /**
     * Where the origin cannot pin: makes sure, after something was read from it, that it is still the generation.
     *
     * @throws IOException if it is another one, or that cannot be known
     */
    void verify() throws IOException;

    /** Whether the generation was remembered, rather than asked for now or given by the caller. */
    boolean isRemembered();

    /**
     * The object is another one than was remembered, and nothing of it was delivered yet: asks the origin again.
     *
     * @return false if the generation was not remembered
     */
    boolean refresh() throws IOException;

    /** Whether an error of a stock stream says that the object changed. */
    boolean isChange(IOException error);

    /** The error that the stock file system has for an object that changed under its reader. */
    IOException changed(String operation, String detail, Throwable cause);

    /** The daemon does not know this store: later opens need not ask for a while. */
    void storeIsUnknown();
}
