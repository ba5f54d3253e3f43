# The push script as a package, with everything that it calls on its PATH.
{
  writeShellApplication,
  coreutils,
  curl,
  findutils,
  gawk,
  gnugrep,
  nix,
}:
writeShellApplication {
  name = "nix-binary-cache-push";
  runtimeInputs = [
    coreutils
    curl
    findutils
    gawk
    gnugrep
    nix
  ];
  # The script sets its own.
  bashOptions = [ ];
  text = builtins.readFile ../push/push.sh;
}
