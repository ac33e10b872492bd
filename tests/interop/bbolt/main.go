// The real bbolt as judge of our files. Reads one command a line and answers each with one line, "ok …" or "error …":
//
//	check FILE            Tx.Check, then every branch page has at least two children
//	dump FILE OUT         every bucket, key, value and sequence, as text
//	build FILE SCRIPT     runs a script of operations with bbolt itself
//	form FILE SIZE FORM   that the page size is SIZE and that there is a freelist, or with FORM "nofreelist" none
//	puts FILE N           the records of N images in one transaction, for benches/bolt.rs
//
// Dump and script lines: depth-first; "b PATH SEQUENCE" for a bucket, "k PATH KEY VALUE" for a key; "d PATH KEY" and
// "D PATH" delete. Paths are hex keys joined by "/", "-" is the empty path or value. "c" in a script commits and goes on.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"

	bolt "go.etcd.io/bbolt"
)

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(make([]byte, 1<<20), 1<<20)
	out := bufio.NewWriter(os.Stdout)
	for in.Scan() {
		answer := run(strings.Fields(in.Text()))
		fmt.Fprintln(out, strings.ReplaceAll(answer, "\n", " "))
		out.Flush()
	}
}

func run(args []string) (answer string) {
	defer func() {
		if r := recover(); r != nil {
			answer = fmt.Sprintf("error panic: %v", r)
		}
	}()
	var err error
	switch {
	case len(args) == 2 && args[0] == "check":
		err = check(args[1])
	case len(args) == 3 && args[0] == "dump":
		err = dump(args[1], args[2])
	case len(args) >= 3 && args[0] == "build":
		err = build(args[1], args[2], args[3:])
	case len(args) == 4 && args[0] == "form":
		err = form(args[1], args[2], args[3])
	case len(args) == 3 && args[0] == "puts":
		err = puts(args[1], args[2])
	default:
		err = fmt.Errorf("unknown command %q", args)
	}
	if err != nil {
		return "error " + err.Error()
	}
	return "ok"
}

func check(file string) error {
	db, err := bolt.Open(file, 0600, &bolt.Options{NoFreelistSync: true})
	if err != nil {
		return err
	}
	defer db.Close()
	tx, err := db.Begin(true)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	var first error
	for err := range tx.Check() {
		if first == nil {
			first = err
		}
	}
	if first != nil {
		return first
	}
	for id := 0; ; id++ {
		page, err := tx.Page(id)
		if err != nil || page == nil {
			return err
		}
		if page.Type == "branch" && page.Count < 2 {
			return fmt.Errorf("branch page %d has %d children", id, page.Count)
		}
		if page.Type != "free" {
			id += page.OverflowCount
		}
	}
}

// form looks at the newer meta page; bbolt itself does not tell.
func form(file, size, want string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	word := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	page := int(binary.LittleEndian.Uint32(b[24:]))
	if strconv.Itoa(page) != size {
		return fmt.Errorf("the page size is %d", page)
	}
	meta := 0
	if word(page+64) > word(64) {
		meta = page
	}
	if none := word(meta+48) == ^uint64(0); none != (want == "nofreelist") {
		return fmt.Errorf("no freelist: %v", none)
	}
	return nil
}

func enc(b []byte) string {
	if len(b) == 0 {
		return "-"
	}
	return hex.EncodeToString(b)
}

func dump(file, out string) error {
	db, err := bolt.Open(file, 0600, &bolt.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer db.Close()
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	err = db.View(func(tx *bolt.Tx) error {
		c := tx.Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			if v != nil {
				return fmt.Errorf("plain key at the root")
			}
			if err := walk(w, tx.Bucket(k), hex.EncodeToString(k)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

func walk(w *bufio.Writer, b *bolt.Bucket, path string) error {
	fmt.Fprintf(w, "b %s %d\n", path, b.Sequence())
	return b.ForEach(func(k, v []byte) error {
		if v == nil {
			return walk(w, b.Bucket(k), path+"/"+hex.EncodeToString(k))
		}
		fmt.Fprintf(w, "k %s %s %s\n", path, hex.EncodeToString(k), enc(v))
		return nil
	})
}

func build(file, script string, options []string) error {
	opts := &bolt.Options{}
	for _, o := range options {
		if o == "nofreelist" {
			opts.NoFreelistSync = true
		} else if o == "nosync" {
			opts.NoSync = true
		} else if n, err := strconv.Atoi(o); err == nil {
			opts.PageSize = n
		}
	}
	db, err := bolt.Open(file, 0600, opts)
	if err != nil {
		return err
	}
	defer db.Close()
	text, err := os.ReadFile(script)
	if err != nil {
		return err
	}
	for _, part := range strings.Split(string(text), "\nc\n") {
		if err := db.Update(func(tx *bolt.Tx) error { return apply(tx, part) }); err != nil {
			return err
		}
	}
	return nil
}

type parent interface {
	CreateBucketIfNotExists([]byte) (*bolt.Bucket, error)
	DeleteBucket([]byte) error
	Bucket([]byte) *bolt.Bucket
}

func apply(tx *bolt.Tx, part string) error {
	for _, line := range strings.Split(part, "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		var at parent = tx
		var bucket *bolt.Bucket
		keys := strings.Split(f[1], "/")
		if f[0] == "D" {
			keys = keys[:len(keys)-1]
		}
		for _, k := range keys {
			key, err := hex.DecodeString(k)
			if err != nil {
				return err
			}
			if bucket, err = at.CreateBucketIfNotExists(key); err != nil {
				return err
			}
			at = bucket
		}
		var err error
		switch f[0] {
		case "b":
			var n uint64
			if n, err = strconv.ParseUint(f[2], 10, 64); err == nil {
				err = bucket.SetSequence(n)
			}
		case "k":
			err = bucket.Put(dec(f[2]), dec(f[3]))
		case "d":
			err = bucket.Delete(dec(f[2]))
		case "D":
			all := strings.Split(f[1], "/")
			err = at.DeleteBucket(dec(all[len(all)-1]))
		}
		if err != nil {
			return fmt.Errorf("%s: %v", line, err)
		}
	}
	return nil
}

func dec(s string) []byte {
	if s == "-" {
		return []byte{}
	}
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

// puts writes what prebake writes for that many images of six blobs each, in the order of the images.
func puts(file, images string) error {
	n, err := strconv.Atoi(images)
	if err != nil {
		return err
	}
	db, err := bolt.Open(file, 0644, &bolt.Options{NoFreelistSync: true})
	if err != nil {
		return err
	}
	defer db.Close()
	now := make([]byte, 15)
	put := func(at parent, name string, values map[string]string) *bolt.Bucket {
		b, err := at.CreateBucketIfNotExists([]byte(name))
		if err != nil {
			panic(err)
		}
		for k, v := range values {
			if err := b.Put([]byte(k), []byte(v)); err != nil {
				panic(err)
			}
		}
		return b
	}
	return db.Update(func(tx *bolt.Tx) error {
		ns := put(put(tx, "v1", nil), "k8s.io", nil)
		blobs := put(put(ns, "content", nil), "blob", nil)
		records := put(ns, "images", nil)
		times := map[string]string{"createdat": string(now), "updatedat": string(now)}
		for i := 0; i < n; i++ {
			digest := func(part int) string {
				return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(fmt.Sprint(i, part))))
			}
			name := fmt.Sprintf("registry.example/team%d/app%d", i%50, i)
			for part := 0; part < 6; part++ {
				labels := map[string]string{"containerd.io/distribution.source.registry.example": name}
				if part == 0 {
					labels["containerd.io/gc.ref.content.config"] = digest(1)
					for l := 0; l < 4; l++ {
						labels[fmt.Sprint("containerd.io/gc.ref.content.l.", l)] = digest(2 + l)
					}
				}
				b := put(blobs, digest(part), times)
				b.Put([]byte("size"), []byte{2})
				put(b, "labels", labels)
			}
			for _, key := range []string{name + ":1.0", name + "@" + digest(0), digest(1)} {
				b := put(records, key, times)
				put(b, "labels", map[string]string{"io.cri-containerd.image": "managed"})
				put(b, "target", map[string]string{"digest": digest(0), "size": string([]byte{2}),
					"mediatype": "application/vnd.oci.image.manifest.v1+json"})
			}
		}
		return nil
	})
}
