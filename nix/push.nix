# The push as a package: Python's standard library, and Nix on its PATH.
{
  lib,
  runCommand,
  writeShellApplication,
  nix,
  python3,
}:
let
  modules =
    folder:
    builtins.path {
      path = folder;
      filter = path: _: lib.hasSuffix ".py" path;
    };

  # Python runs a directory with a __main__.py, and nothing of where it is run or of its user gets
  # in between. Compiled here, because nobody can write into the store later.
  program = runCommand "nix-binary-cache-push-program" { } ''
    mkdir $out
    cp -r --no-preserve=mode ${modules ../push} $out/push
    cp -r --no-preserve=mode ${modules ../formats} $out/formats
    cp $out/push/__main__.py $out/
    ${python3}/bin/python3 -m compileall -q --invalidation-mode unchecked-hash $out
  '';
in
writeShellApplication {
  name = "nix-binary-cache-push";
  runtimeInputs = [ nix ];
  text = ''exec ${python3}/bin/python3 -I ${program} "$@"'';
}
