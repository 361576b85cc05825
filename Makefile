# make run      builds peerd and starts it here with a tracker of its own; share by putting files into upload/
# make test     installs what is missing (as root) and passes every test
# make story    the story of README.md at full size
# make fuzz     every decoder under a coverage-guided fuzzer, 60 s each
# make soak     a thousand crashes of the daemons on a failing disk; PEERD_SEED=n repeats one
# make bench    what it costs, measured beside other clients; writes bench/RESULTS.md
# make install  PREFIX=/usr/local DESTDIR=

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
export CARGO

.PHONY: run test story fuzz soak bench install

run:
	$(CARGO) build --bins
	$(CARGO) run --bin peerd -- --own-tracker --foreground

test:
	scripts/test.sh

story:
	PEERD_STORY=full scripts/test.sh story::the_story --nocapture

fuzz:
	scripts/fuzz.sh

soak:
	PEERD_SOAK=$${PEERD_SOAK:-800} scripts/test.sh disk::crash --nocapture --test-threads 1

bench:
	scripts/bench.sh

install:
	$(CARGO) build --release --bins
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(PREFIX)/lib/systemd/system' '$(DESTDIR)$(PREFIX)/lib/sysusers.d'
	install -m 755 target/release/peerd target/release/trackerd target/release/peerctl '$(DESTDIR)$(PREFIX)/bin'
	for unit in systemd/*.service; do \
		sed 's|/usr/local/bin|$(PREFIX)/bin|' "$$unit" >'$(DESTDIR)$(PREFIX)/lib/systemd/system/'"$${unit##*/}" || exit 1; \
	done
	for users in systemd/*.sysusers.conf; do \
		name=$${users##*/}; \
		install -m 644 "$$users" '$(DESTDIR)$(PREFIX)/lib/sysusers.d/'"$${name%.sysusers.conf}.conf" || exit 1; \
	done
