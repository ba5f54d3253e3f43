# The push and its post-build hook as a package. Python runs them isolated: nothing of the
# machine's or the user's environment decides what they import.
{
  lib,
  stdenvNoCC,
  makeBinaryWrapper,
  nix,
  python3,
}:
let
  inherit (lib.fileset)
    difference
    fileFilter
    toSource
    unions
    ;
  modules = fileFilter (file: file.hasExt "py");
in
stdenvNoCC.mkDerivation {
  name = "nix-binary-cache-push";

  # What a builder runs, as it is in the zipapp of `components/push_program.py`, and the hook.
  src = toSource {
    root = ../.;
    fileset = difference (unions [
      (modules ../push)
      (modules ../formats)
    ]) (unions [
      ../push/bootstrap.py
      ../push/ci_job.py
      ../push/job_nix.py
      ../push/user_nix_conf.py
      ../push/whole_file.py
      ../formats/nix_conf.py
      ../formats/signing.py
    ]);
  };

  strictDeps = true;
  nativeBuildInputs = [
    makeBinaryWrapper
    python3
  ];

  dontConfigure = true;
  dontBuild = true;
  doInstallCheck = true;

  # A directory with a __main__.py is a program, and the one place that it imports from.
  installPhase = ''
    runHook preInstall

    push=$out/lib/nix-binary-cache-push
    hook=$out/lib/nix-binary-cache-post-build-hook
    mkdir -p $push $hook
    cp push/post_build_hook.py $hook/__main__.py
    rm push/post_build_hook.py
    cp -r push formats push/__main__.py $push
    ln -s $push/formats $hook
    python3 -m compileall -q --invalidation-mode unchecked-hash $out/lib

    makeBinaryWrapper ${python3.interpreter} $out/bin/nix-binary-cache-push \
      --add-flags "-I $push" --prefix PATH : ${lib.makeBinPath [ nix ]}
    makeBinaryWrapper ${python3.interpreter} $out/bin/nix-binary-cache-post-build-hook \
      --add-flags "-I $hook"

    runHook postInstall
  '';

  installCheckPhase = ''
    runHook preInstallCheck
    $out/bin/nix-binary-cache-push --help >/dev/null
    $out/bin/nix-binary-cache-post-build-hook
    runHook postInstallCheck
  '';

  meta = {
    description = "Pushes closures of the Nix store to a binary cache on an S3 server";
    license = lib.licenses.mit;
    mainProgram = "nix-binary-cache-push";
    platforms = lib.platforms.unix;
  };
}
