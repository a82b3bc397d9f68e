from ssl_mednet.cli import main

main()
