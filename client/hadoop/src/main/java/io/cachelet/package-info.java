/** Cachelet for the JVM. */
package io.cachelet;
