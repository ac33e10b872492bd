// Go's archive/tar, with which containerd reads layers, as judge of how we read them. Reads one command a line, "FILE OUT",
// writes the archive's entries to OUT as text, and answers each with "ok" or "error …" about the command itself.
//
// A line an entry: kind, path, link, mode, uid, gid, mtime, atime, size, device, attributes, sha256 of the contents; paths and
// attributes in hexadecimal digits. "end" or "bad" is the last line: what Go makes of the archive as a whole.
package main

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"time"
)

// How much of each file is compared: a sparse one may say that it has exabytes.
const lookedAt = 1 << 20

func main() {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		args := strings.Fields(in.Text())
		answer := "ok"
		if err := list(args[0], args[1]); err != nil {
			answer = "error " + err.Error()
		}
		fmt.Println(answer)
	}
}

func list(file, out string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	o, err := os.Create(out)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(o)
	entries(tar.NewReader(bufio.NewReader(f)), w)
	if err := w.Flush(); err != nil {
		return err
	}
	return o.Close()
}

func entries(tr *tar.Reader, w io.Writer) {
	for {
		h, err := tr.Next()
		if err == io.EOF {
			fmt.Fprintln(w, "end")
			return
		}
		if err != nil {
			fmt.Fprintln(w, "bad")
			return
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			fmt.Fprintln(w, "g")
			continue
		}
		sum := sha256.New()
		if _, err := io.CopyN(sum, tr, lookedAt); err != nil && err != io.EOF {
			fmt.Fprintln(w, "bad")
			return
		}
		var xattrs []string
		for k, v := range h.PAXRecords {
			if strings.HasPrefix(k, "SCHILY.xattr.") {
				xattrs = append(xattrs, fmt.Sprintf("%x=%x", k[len("SCHILY.xattr."):], v))
			}
		}
		sort.Strings(xattrs)
		atime := "-"
		if h.AccessTime != (time.Time{}) {
			atime = at(h.AccessTime)
		}
		fmt.Fprintf(w, "%c %x %x %d %d %d %s %s %d %d:%d [%s] %x\n", h.Typeflag, h.Name, h.Linkname, h.Mode, h.Uid, h.Gid,
			at(h.ModTime), atime, h.Size, h.Devmajor, h.Devminor, strings.Join(xattrs, " "), sum.Sum(nil))
	}
}

func at(t time.Time) string {
	return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond())
}
